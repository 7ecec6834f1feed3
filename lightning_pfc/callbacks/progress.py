"""A progress bar that is of use in a log file, too, and that a GPU is not made to wait for."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor
from typing_extensions import override

from lightning_pfc.checked import checked

_LOSS = "train/loss"


@checked
class ProgressBar(RichProgressBar):
    """Lightning's bar on a terminal; elsewhere one line every ``seconds``, with the same numbers.

    What is logged with ``prog_bar=True`` Lightning reads after every step, and a number is read only when the device
    has come so far: the host can prepare no step ahead. This bar reads the training loss by itself, when it is looked
    at; :class:`~lightning_pfc.PartialFCModule` then logs it without ``prog_bar``.

    Args:
        seconds: between lines where the output is no terminal.
        **kwargs: of ``RichProgressBar``.

    Attributes:
        reads_loss: that it does so.
        read_every: seconds between two looks at the loss.
    """

    reads_loss = True
    read_every = 0.5

    def __init__(self, seconds: float = 15.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seconds = seconds
        self.clock: Callable[[], float] = time.monotonic
        self._last = 0.0
        self._loss: float | None = None
        self._read_at = float("-inf")

    @override
    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """What is shown; the loss as it was within the last ``read_every`` seconds."""
        shown = super().get_metrics(trainer, pl_module)
        if _LOSS in shown:  # somebody else's module, which logged it for the bar
            return shown
        now = self.clock()
        if trainer.training and now - self._read_at >= self.read_every:
            loss = trainer.callback_metrics.get(_LOSS)
            self._loss, self._read_at = (loss.item() if isinstance(loss, Tensor) else None), now
        return shown if self._loss is None else {_LOSS: self._loss, **shown}

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._loss = None
        self._look()

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if not self.is_enabled or sys.stdout.isatty():
            return
        now, last_step = self.clock(), trainer.global_step >= trainer.estimated_stepping_batches
        if now - self._last >= self.seconds or last_step:
            self._last = now
            self._look()
            numbers = {k: v for k, v in self.get_metrics(trainer, pl_module).items() if k != "v_num"}
            shown = "  ".join(f"{name} {_short(value)}" for name, value in numbers.items())
            place = f"epoch {trainer.current_epoch}  step {trainer.global_step}/{trainer.estimated_stepping_batches}"
            print(f"{place}  {shown}", flush=True)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look()
        super().on_train_epoch_end(trainer, pl_module)

    def _look(self) -> None:
        """The next time that numbers are asked for, the loss is that of the step before."""
        self._read_at = float("-inf")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float | int) else str(value)
