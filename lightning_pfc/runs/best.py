"""Which of a run's checkpoints is the best by what was watched."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint


def best_checkpoint(trainer: L.Trainer) -> str | None:
    """Path of the best checkpoint of the callback that watches something; None where none does, or has kept any."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
            return callback.best_model_path
    return None
