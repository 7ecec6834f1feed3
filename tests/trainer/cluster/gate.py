"""A callback that stops a job at places of the test's choice, each start at another one, until a signal comes."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger

from lightning_pfc.callbacks import Preemption


def this_start() -> int:
    """How often the controller has put this job back into the queue."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def wait_at(place: str | int, trainer: L.Trainer | None = None) -> None:
    """Leave a file called ``at-PLACE-START`` in the working directory; go on when the run's Preemption has a signal."""
    Path(f"at-{place}-{this_start()}").touch()
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline:
        time.sleep(0.02)
        callbacks: Any = trainer.callbacks if trainer is not None else ()  # type: ignore[attr-defined]
        if any(isinstance(callback, Preemption) and callback._received for callback in callbacks):
            return
    raise TimeoutError(f"no signal came at {place}.")


class Gate(Callback):
    """Waits before data and model are built, or after a step.

    Args:
        stops: "start" or the number of a step, for the first start of the job and those that follow.
    """

    def __init__(self, stops: Sequence[str | int]) -> None:
        self.stop = stops[this_start()] if this_start() < len(stops) else None
        if self.stop == "start":
            wait_at("start")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self.stop == trainer.global_step:
            wait_at(trainer.global_step, trainer)


class LastLogger(Logger):
    """Waits when training is over, after all callbacks.

    Args:
        start: of the job, from 0.
    """

    def __init__(self, start: int) -> None:
        super().__init__()
        self.start = start

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, *args: Any, **kwargs: Any) -> None: ...

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def finalize(self, status: str) -> None:
        if status == "success" and self.start == this_start():
            wait_at("end")
