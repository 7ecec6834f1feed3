"""What a module asks of its Trainer's training data: images of each class, and samples in a step."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from lightning_pfc.heads.partial_fc import PartialFC


def global_batch_size(trainer: L.Trainer) -> int | None:
    """Samples per optimizer step over all ranks and accumulated batches; None if the data loader does not tell."""
    loader = trainer.train_dataloader
    size = (
        getattr(loader, "batch_size", None)
        or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
        or getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    )
    return int(size) * trainer.world_size * trainer.accumulate_grad_batches if size else None


def class_counts(trainer: L.Trainer, name: str, head: PartialFC) -> Tensor:
    """How many training images each class of a head has, (C,) int64, from the data module.

    Args:
        trainer: whose data module is asked.
        name: of the head, for the message.
        head: whose sampler wants to know.

    Raises:
        ValueError: the data module does not tell, or has other classes.
    """
    data: Any = getattr(getattr(trainer, "datamodule", None), "data", None)
    labels = getattr(data, "labels", None)
    if labels is None or data.num_classes != head.num_classes:
        raise ValueError(
            f"{name}.sampler={head.sampler} needs the number of images of each class, which this data module does not "
            "tell; call head.set_class_counts(counts) in on_fit_start."
        )
    every = torch.as_tensor(labels[np.arange(len(labels))]).flatten()  # an array, or something that computes them
    return torch.bincount(every[every >= 0], minlength=head.num_classes)
