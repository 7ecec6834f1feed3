"""Batches of evaluation: every picture once, in order, spread evenly over the ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from lightning_pfc.data.camera import to_float
from lightning_pfc.data.images import ImageTable, Labels


class EvaluationBatches(Dataset[tuple[Tensor, Tensor]]):
    """Every picture once, without augmentation: this rank's part of each batch, with positions or labels.

    All ranks see the same number of batches, and no batch is empty, so a step may contain collectives; pictures are
    spread evenly over the batches, and sizes differ by one at most.

    Args:
        images: the pictures.
        targets: (N,) int64, what a batch carries beside the pictures: labels, or None for the positions themselves.
        batch_size: most images per rank and step.
        rank, world_size: of the ranks that share the work.
    """

    def __init__(
        self,
        images: ImageTable,
        targets: Labels | None,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        if len(images) < world_size:
            raise ValueError(f"{len(images)} images cannot be shared by {world_size} ranks: use fewer ranks.")
        self.images = images
        self.targets = targets
        self.rank = rank
        self.world_size = world_size
        self.num_batches = -(-len(images) // (batch_size * world_size))

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        index = self.positions(number)
        targets = index if self.targets is None else np.asarray(self.targets[index], dtype=np.int64)
        return to_float(self.images.fetch(index)), torch.from_numpy(targets)

    def positions(self, number: int) -> NDArray[np.int64]:
        """(b,) which pictures this rank's part of a batch has."""
        if not 0 <= number < self.num_batches:
            raise IndexError(f"batch {number} of {self.num_batches}")
        part, parts = number * self.world_size + self.rank, self.num_batches * self.world_size
        return np.arange(len(self.images) * part // parts, len(self.images) * (part + 1) // parts)


class _InOrder(DistributedSampler[int]):
    """0, 1, 2, ...: a DistributedSampler only so that Lightning puts no sampler of its own in its place."""

    def __init__(self, length: int) -> None:
        self.length = length

    def set_epoch(self, epoch: int) -> None:
        """Every epoch is the same."""

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.length))


def evaluation_loader(batches: Sized, num_workers: int = 0, **kwargs: Any) -> DataLoader[Any]:
    """A loader over a data set of whole batches, in order."""
    data = cast("Dataset[Any]", batches)
    return DataLoader(data, batch_size=None, sampler=_InOrder(len(batches)), num_workers=num_workers, **kwargs)
