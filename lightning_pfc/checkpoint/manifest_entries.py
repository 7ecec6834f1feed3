"""What a manifest says of one file, one tensor and one part of a tensor, and what dtypes are called there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from lightning_pfc.checkpoint.errors import CheckpointError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """The name that safetensors has for a dtype.

    Raises:
        CheckpointError: for a dtype that a checkpoint cannot hold.
    """
    if dtype not in _NAMES:
        raise CheckpointError(f"tensors of {dtype} cannot be saved in a checkpoint folder; convert them before saving.")
    return _NAMES[dtype]


def dtype_of(name: str) -> torch.dtype:
    """The dtype that safetensors calls ``name``.

    Raises:
        CheckpointError: for a name that is not known.
    """
    if not isinstance(name, str) or name not in _DTYPES:
        raise CheckpointError(f"the checkpoint holds a tensor of dtype {name!r}, which this version does not know.")
    return _DTYPES[name]


@dataclass(frozen=True)
class FileEntry:
    """One file: its size in bytes and the CRC-32 of each of its blocks, see ``manifest.BLOCK``."""

    size: int
    crc32: list[int]


@dataclass(frozen=True)
class ChunkEntry:
    """Where some rows of a tensor lie: ``shape`` from ``offset`` on, at byte ``start`` of ``file``, row-major."""

    file: str
    start: int
    offset: list[int]
    shape: list[int]


@dataclass(frozen=True)
class TensorEntry:
    """A tensor: its shape over all ranks, and the chunks that make it up."""

    dtype: str
    shape: list[int]
    by_class: bool
    chunks: list[ChunkEntry]

    @staticmethod
    def of(tensor: torch.Tensor, by_class: bool) -> TensorEntry:
        """Of a tensor that is not in any file yet."""
        return TensorEntry(dtype_name(tensor.dtype), list(tensor.shape), by_class, [])

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return dtype_of(self.dtype).itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; of the whole for a tensor without dimensions."""
        return math.prod(self.shape[1:]) * self.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return math.prod(self.shape) * self.itemsize

    def with_rows(self, count: int) -> TensorEntry:
        """The same with another number of rows, not in any file yet."""
        return TensorEntry(self.dtype, [count, *self.shape[1:]], self.by_class, [])
