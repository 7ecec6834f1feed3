"""A progress bar that is of use in a log file, too."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from typing_extensions import override

from lightning_pfc.checked import checked


@checked
class ProgressBar(RichProgressBar):
    """Lightning's bar on a terminal; elsewhere one line every ``seconds``, with the same numbers.

    Args:
        seconds: between lines where the output is no terminal.
        **kwargs: of ``RichProgressBar``.
    """

    def __init__(self, seconds: float = 15.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seconds = seconds
        self._last = 0.0

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if not self.is_enabled or sys.stdout.isatty():
            return
        now, last_step = time.monotonic(), trainer.global_step >= trainer.estimated_stepping_batches
        if now - self._last >= self.seconds or last_step:
            self._last = now
            numbers = {k: v for k, v in self.get_metrics(trainer, pl_module).items() if k != "v_num"}
            shown = "  ".join(f"{name} {_short(value)}" for name, value in numbers.items())
            place = f"epoch {trainer.current_epoch}  step {trainer.global_step}/{trainer.estimated_stepping_batches}"
            print(f"{place}  {shown}", flush=True)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float | int) else str(value)
