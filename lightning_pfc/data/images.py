"""Tables of images: what a loader asks for pictures, many at a time."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_pfc.data.errors import reading
from lightning_pfc.storage.positioned import PositionedFile


@runtime_checkable
class ImageTable(Protocol):
    """Pictures of one size, fetched by the batch."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every picture."""

    def __len__(self) -> int:
        """Number of pictures."""

    def fetch(self, index: NDArray[np.int64]) -> Tensor:
        """(b,) positions to (b, C, H, W) uint8 images."""


class Labels(Protocol):
    """(N,) int64 labels: an array, or something that computes them."""

    def __len__(self) -> int:
        """Number of labels."""

    def __getitem__(self, index: NDArray[np.int64], /) -> NDArray[np.int64]:
        """(b,) positions to (b,) labels."""


class ArrayImages:
    """Some rows of a uint8 array, in memory or memory-mapped; nothing is copied before it is asked for.

    Rows of a map are read from its file by position: where that shrinks, a map would kill the process.

    Args:
        array: (N, H, W) or (N, C, H, W) uint8.
        rows: which rows this table shows, in order; all by default.
    """

    def __init__(self, array: NDArray[np.uint8], rows: NDArray[np.int64] | None = None) -> None:
        if array.dtype != np.uint8 or array.ndim not in (3, 4):
            raise ValueError(f"array must be uint8 of 3 or 4 dimensions, not {array.dtype} of shape {array.shape}.")
        self.array = array
        self.rows = np.arange(len(array)) if rows is None else rows
        self._file = _file_of(array)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every picture."""
        shape = self.array.shape[1:]
        return (1, shape[0], shape[1]) if len(shape) == 2 else (shape[0], shape[1], shape[2])

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        # A worker process that is spawned maps the file itself, instead of being sent all of it.
        state = {key: value for key, value in self.__dict__.items() if key != "_file"}
        if isinstance(self.array, np.memmap) and self.array.filename is not None:
            a = self.array
            state["array"] = (str(a.filename), a.shape, a.offset)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state["array"], tuple):
            filename, shape, offset = state["array"]
            state["array"] = np.memmap(filename, dtype=np.uint8, mode="r", offset=offset, shape=shape)
        self.__dict__.update(state)
        self._file = _file_of(self.array)

    def fetch(self, index: NDArray[np.int64]) -> Tensor:
        """(b,) positions to (b, C, H, W) uint8 images."""
        rows = self.rows[index]
        if self._file is None:
            return torch.from_numpy(self.array[rows]).view(len(index), *self.image_shape)
        file, offset = self._file
        width = self.array[:1].nbytes
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self.array):
            raise IndexError(f"row {rows.max()} of {len(self.array)}")
        with reading(file.path, "an array of pictures"):
            data = file.gather((offset + rows * width).tolist(), width)
        return torch.from_numpy(np.frombuffer(data, np.uint8)).view(len(index), *self.image_shape)


def _file_of(array: NDArray[np.uint8]) -> tuple[PositionedFile, int] | None:
    """The file that an array maps, and where its rows begin; None for an array in memory, or for a part of a map."""
    if not isinstance(array, np.memmap) or array.filename is None or not array.flags.c_contiguous:
        return None
    file = PositionedFile(str(array.filename))
    return (file, array.offset) if array.offset + array.nbytes == file.size else None
