"""Samples per second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from lightning_pfc.checked import checked


@checked
class Throughput(Callback):
    """Logs ``train/samples_per_second`` over all ranks, since the last time it was logged, without validation.

    Ranks are taken to have batches of the same size; no collective is run.

    Args:
        clock: seconds that only grow.

    Attributes:
        samples: seen in training, over all ranks; a resumed run counts on from its checkpoint, here and below.
        seconds: spent in training, without validation and without the first step of each start.
        seconds_before: from the making of this callback to the checkpoint, in all starts before this one.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._born = clock()
        self._reset()

    def _reset(self) -> None:
        self.samples = 0
        self.seconds = 0.0
        self.seconds_before = 0.0
        self._timed_samples = 0  # the first step compiles kernels and touches memory for the first time
        self._mark: float | None = None
        self._window = (0, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Counts so far."""
        return {
            "samples": self.samples,
            "seconds": self.seconds,
            "timed_samples": self._timed_samples,
            "run_seconds": self.seconds_before + self._clock() - self._born,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from there."""
        self.samples, self.seconds = int(state_dict["samples"]), float(state_dict["seconds"])
        self._timed_samples = int(state_dict["timed_samples"])
        self.seconds_before = float(state_dict["run_seconds"])

    @property
    def samples_per_second(self) -> float | None:
        """Over the whole run, all its starts; None before the second step."""
        return self._timed_samples / self.seconds if self.seconds > 0 else None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start to count."""
        if stage == "fit":
            self._reset()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch: from the end of the batch before to the end of this one, so that loading counts."""
        now = self._clock()
        size = len(batch[0]) * trainer.world_size
        self.samples += size
        if self._mark is not None:
            self.seconds += now - self._mark
            self._timed_samples += size
            samples, seconds = self._window
            self._window = (samples + size, seconds + now - self._mark)
        self._mark = now
        if (trainer.global_step % trainer.log_every_n_steps == 0) and self._window[1] > 0:  # type: ignore[attr-defined]
            rate = torch.tensor(self._window[0] / self._window[1])  # on the host: a bar reads it after every step
            pl_module.log("train/samples_per_second", rate, prog_bar=True, on_step=True, on_epoch=False)
            self._window = (0, 0.0)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self._mark = None
