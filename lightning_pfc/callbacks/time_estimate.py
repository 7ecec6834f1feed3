"""How long a run will take, told while it can still be changed cheaply."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Timer
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_pfc.checked import checked

_DAYS = 48 * 3600.0
_MANY_CLASSES = 100_000


@checked
class TimeEstimate(Callback):
    """Says once, after some batches, how long an epoch and the rest of the run take; what is cheaper if it is days.

    Only what rank 0 saw is counted; no collective is run. Validation, tests and checkpoints come on top.

    Args:
        batches: that are timed, after the first one.
        quiet_below: seconds; nothing is said of a run that is over sooner.
    """

    def __init__(self, batches: int = 20, quiet_below: float = 60.0) -> None:
        if batches < 1:
            raise ValueError(f"batches={batches} must be at least 1.")
        self.batches, self.quiet_below = batches, quiet_below
        self._since: float | None = None
        self._seen = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count anew."""
        self._since, self._seen = None, 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Time from the end of the first batch, which compiles and touches memory, to that of the last one."""
        if self._seen > self.batches:
            return
        now = time.perf_counter()
        if self._since is None:
            self._since = now
        self._seen += 1
        if self._seen > self.batches and trainer.is_global_zero:
            self._tell(trainer, pl_module, (now - self._since) / self.batches, batch_idx)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A validation among the first batches: begin again."""
        if self._seen <= self.batches:
            self._since, self._seen = None, 0

    def _tell(self, trainer: L.Trainer, module: L.LightningModule, each: float, batch_idx: int) -> None:
        left = batches_left(trainer, batch_idx)
        seconds = math.inf if left is None else left * each
        limit = _seconds_allowed(trainer)
        if min(seconds, limit) < self.quiet_below:
            return
        words = [f"A batch takes {in_words(each)}"]
        if math.isfinite(trainer.num_training_batches):
            epoch = trainer.num_training_batches * each
            words.append(f"an epoch of {int(trainer.num_training_batches):,} about {in_words(epoch)}")
        if seconds <= limit and math.isfinite(seconds):
            words.append(f"the rest of the run {in_words(seconds)}")
        elif math.isfinite(limit):
            words.append(f"and trainer.max_time ends the run in {in_words(limit)}, after {limit / each:,.0f} more")
        rank_zero_info("%s, without validation and saving.%s", ", ".join(words), _cheaper(trainer, module, seconds))


def batches_left(trainer: L.Trainer, batch_idx: int) -> float | None:
    """Batches of rank 0 until ``max_epochs`` or ``max_steps`` ends the run; None where neither does."""
    ends = []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0 and math.isfinite(trainer.num_training_batches):
        epochs = trainer.max_epochs - trainer.current_epoch
        ends.append(epochs * trainer.num_training_batches - (batch_idx + 1))
    if trainer.max_steps >= 0:
        ends.append((trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches)
    return max(0.0, min(ends)) if ends else None


def in_words(seconds: float) -> str:
    """A duration with two figures or so: ``0.43 s``, ``8.6 min``, ``2 h 52 min``, ``3.4 days``."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.2g} min" if seconds < 600 else f"{seconds / 60:.0f} min"
    if seconds < _DAYS:
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours} h {minutes} min"
    return f"{seconds / 86400:.1f} days"


def _seconds_allowed(trainer: L.Trainer) -> float:
    """What ``trainer.max_time`` leaves; infinite without one."""
    left = [c.time_remaining() for c in trainer.callbacks if isinstance(c, Timer)]  # type: ignore[attr-defined]
    return min((seconds for seconds in left if seconds is not None), default=math.inf)


def _cheaper(trainer: L.Trainer, module: L.LightningModule, seconds: float) -> str:
    """For a run of days: which words make it shorter, of those that are not in use already."""
    if seconds < _DAYS or math.isfinite(_seconds_allowed(trainer)):
        return ""
    head = getattr(module, "head", None)
    words = []
    if float(getattr(head, "sample_rate", 0.0)) == 1.0 and getattr(head, "num_classes", 0) >= _MANY_CLASSES:
        words.append("head.sample_rate=0.1")
    if str(trainer.precision).startswith("32"):
        words.append("trainer.precision=bf16-mixed")
    words += [
        "a smaller backbone (`pfc-train --help` lists them)",
        "trainer.max_time=01:00:00:00, which ends it after a day",
    ]
    return f" Cheaper: {'; '.join(words)}."
