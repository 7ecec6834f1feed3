"""Batches before they are decoded: what processes read and draw, and DALI is fed with."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_pfc.data.batches import BatchNumber, TrainingBatches
from lightning_pfc.data.dali.steps import draw
from lightning_pfc.data.errors import FormatError
from lightning_pfc.data.formats.decoded import DecodedImages
from lightning_pfc.data.images import ImageTable
from lightning_pfc.data.joint import JoinedImages


def tables_of(images: ImageTable) -> list[ImageTable]:
    """The tables behind each other that a table is made of."""
    if isinstance(images, JoinedImages):
        return [part for table in images.tables for part in tables_of(table)]
    return [images]


class EncodedBatch(NamedTuple):
    """A batch before it is decoded.

    Attributes:
        number: which one.
        data: (n,) uint8, the encoded images behind each other.
        sizes: (b,) int64, bytes of each.
        drawn: see :func:`~lightning_pfc.data.dali.steps.draw`.
        targets: what goes with the images.
    """

    number: BatchNumber
    data: Tensor
    sizes: Tensor
    drawn: dict[str, Tensor]
    targets: tuple[Tensor, ...]


class EncodedBatches(Dataset[EncodedBatch]):
    """The batches of the plain loader before they are decoded.

    Args:
        batches: the plain loader's, of images that are encoded in files.
    """

    def __init__(self, batches: TrainingBatches) -> None:
        self.batches = batches
        self._tables = [table for table in tables_of(batches.images) if isinstance(table, DecodedImages)]
        self._bounds = np.cumsum([0, *(len(table) for table in self._tables)])

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: BatchNumber | int) -> EncodedBatch:
        number, position, keys = self.batches.drawn(number)
        table = np.searchsorted(self._bounds, position, side="right") - 1
        places = position - self._bounds[table]
        images: list[Any] = [
            np.frombuffer(self._tables[t].read(place), dtype=np.uint8)
            for t, place in zip(table.tolist(), places.tolist(), strict=True)
        ]
        drawn = draw(self.batches.augment, keys, self.batches.images.image_shape)
        return EncodedBatch(
            number,
            torch.from_numpy(np.concatenate(images)),
            torch.tensor([len(image) for image in images]),
            {name: torch.from_numpy(values) for name, values in drawn.items()},
            self.batches.targets(position),
        )

    def refused(self, number: BatchNumber, error: Exception) -> Exception:
        """What to raise when DALI failed at a batch: the broken image by its name, if the plain decoder finds one."""
        try:
            self.batches.images.fetch(self.batches.drawn(number)[1])
        except FormatError as found:
            return found
        return RuntimeError(
            f"DALI failed at batch {number.batch} of epoch {number.epoch}, whose images the plain loader can decode. "
            f"If DALI does not know their format, leave loader out. {error}"
        )
