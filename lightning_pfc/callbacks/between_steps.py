"""What callbacks share that measure something between two steps of training."""

from __future__ import annotations

from collections.abc import Mapping

import lightning as L
import torch

from lightning_pfc.callbacks.throughput import Throughput


def log_numbers(trainer: L.Trainer, numbers: Mapping[str, float]) -> None:
    """Give numbers to the loggers at the current step, and to ``trainer.callback_metrics``."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(numbers), step=trainer.global_step)
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in numbers.items()})


def stop_clocks(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """Have samples per second not count the time since the last batch, which was no training."""
    for callback in getattr(trainer, "callbacks", []):
        if isinstance(callback, Throughput):
            callback.on_validation_start(trainer, pl_module)
