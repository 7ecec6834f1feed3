"""A callback that stops a job's first start at a place of the test's choice, until a signal comes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger

from lightning_pfc.callbacks import Preemption


def wait_at(place: str, trainer: L.Trainer | None = None) -> None:
    """Leave a file called ``at-PLACE`` in the working directory; go on when the run's Preemption has a signal."""
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        return
    Path(f"at-{place}").touch()
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline:
        time.sleep(0.02)
        callbacks: Any = trainer.callbacks if trainer is not None else ()  # type: ignore[attr-defined]
        if any(isinstance(callback, Preemption) and callback._received for callback in callbacks):
            return
    raise TimeoutError(f"no signal came at {place}.")


class Gate(Callback):
    """Waits before data and model are built, or after a step."""

    def __init__(self, step: int = 0) -> None:
        self.step = step
        if not step:
            wait_at("start")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self.step == trainer.global_step:
            wait_at("step", trainer)


class LastLogger(Logger):
    """Waits when training is over, after all callbacks."""

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, *args: Any, **kwargs: Any) -> None: ...

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def finalize(self, status: str) -> None:
        if status == "success":
            wait_at("end")
