"""How rows are kept: full floats, bfloat16 with stochastic rounding, or 8 bits and a scale per row.

Rules of optimizers are computed in float32 (float64 for float64 rows) on rows that were read, and rounded when they are
written. Shape letters as in :mod:`lightning_pfc.optim.rows`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from math import prod

import torch
from torch import Tensor
from typing_extensions import override

from lightning_pfc.keyed_random.rounding_noise import RowNoise
from lightning_pfc.optim.rows import RowChunk

Noise = Callable[[], Tensor]
"""Gives int32 numbers from 0 to 65535, ``(n, prod(rest))``, for the rows that are written."""

SCALE_SUFFIX = "_scale"


class RowStorage(ABC):
    """A way to keep rows in one or two tensors, whose first dimension is the number of rows."""

    compute_dtype = torch.float32
    """What :meth:`read` gives."""

    @abstractmethod
    def layout(self, name: str, shape: torch.Size) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Shapes and types of the tensors that keep rows of ``shape``, by their names; all zeros stand for zeros."""

    @abstractmethod
    def read(self, name: str, tensors: Mapping[str, Tensor], index: Tensor | slice) -> Tensor:
        """Rows in the type to compute with, to be changed in place and given to :meth:`write`."""

    @abstractmethod
    def write(self, name: str, tensors: Mapping[str, Tensor], chunk: RowChunk, rows: Tensor, noise: Noise) -> None:
        """Puts rows back; ``rows`` may be overwritten."""


class FullRows(RowStorage):
    """Rows as they are, in float32 or float64."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = self.compute_dtype = dtype

    @override
    def layout(self, name: str, shape: torch.Size) -> dict[str, tuple[torch.Size, torch.dtype]]:
        return {name: (shape, self.dtype)}

    @override
    def read(self, name: str, tensors: Mapping[str, Tensor], index: Tensor | slice) -> Tensor:
        return _take(tensors[name], index)

    @override
    def write(self, name: str, tensors: Mapping[str, Tensor], chunk: RowChunk, rows: Tensor, noise: Noise) -> None:
        if not isinstance(chunk.rows, slice):
            _put(tensors[name], chunk, rows)


class HalfRows(RowStorage):
    """Rows in bfloat16, rounded up or down at random so that the expectation is exact.

    Rounding to the nearest would lose every update below 1/256 of a weight, which late in training is all of them.
    """

    @override
    def layout(self, name: str, shape: torch.Size) -> dict[str, tuple[torch.Size, torch.dtype]]:
        return {name: (shape, torch.bfloat16)}

    @override
    def read(self, name: str, tensors: Mapping[str, Tensor], index: Tensor | slice) -> Tensor:
        return _take(tensors[name], index).float()

    @override
    def write(self, name: str, tensors: Mapping[str, Tensor], chunk: RowChunk, rows: Tensor, noise: Noise) -> None:
        _put(tensors[name], chunk, stochastic_round_(rows, noise()).to(torch.bfloat16))


class SignedByteRows(RowStorage):
    """Rows as int8 multiples of 1/127 of the row's largest magnitude, rounded at random; a float32 scale per row."""

    levels = 127.0
    dtype = torch.int8

    @override
    def layout(self, name: str, shape: torch.Size) -> dict[str, tuple[torch.Size, torch.dtype]]:
        return {name: (shape, self.dtype), name + SCALE_SUFFIX: (shape[:1], torch.float32)}

    @override
    def read(self, name: str, tensors: Mapping[str, Tensor], index: Tensor | slice) -> Tensor:
        rows = _take(tensors[name], index).float()
        scale = _take(tensors[name + SCALE_SUFFIX], index)
        return rows.mul_((scale / self.levels).view(-1, *[1] * (rows.dim() - 1)))

    @override
    def write(self, name: str, tensors: Mapping[str, Tensor], chunk: RowChunk, rows: Tensor, noise: Noise) -> None:
        flat = rows.view(rows.shape[0], -1)
        scale = flat.abs().amax(1)
        # A row of zeros has scale 0, and 0 * inf is to be 0.
        flat.mul_((self.levels / scale.clamp_min(torch.finfo(torch.float32).tiny))[:, None])
        flat.add_(noise(), alpha=1 / 65536).floor_()
        _put(tensors[name], chunk, self._fit_(flat).to(self.dtype).view(rows.shape))
        _put(tensors[name + SCALE_SUFFIX], chunk, scale)

    def _fit_(self, codes: Tensor) -> Tensor:
        return codes.clamp_(-self.levels, self.levels)


class SquareByteRows(SignedByteRows):
    """Rows of squares, as uint8 multiples of 1/255 of the row's largest root, for what is divided by after a root.

    A root is never rounded to zero (unless the whole row is zero): dividing by it would blow up.
    """

    levels = 255.0
    dtype = torch.uint8

    @override
    def read(self, name: str, tensors: Mapping[str, Tensor], index: Tensor | slice) -> Tensor:
        return super().read(name, tensors, index).square_()

    @override
    def write(self, name: str, tensors: Mapping[str, Tensor], chunk: RowChunk, rows: Tensor, noise: Noise) -> None:
        super().write(name, tensors, chunk, rows.sqrt_(), noise)

    def _fit_(self, codes: Tensor) -> Tensor:
        return codes.clamp_(1.0, self.levels)


def weight_storage(dtype: torch.dtype) -> RowStorage:
    """How centers of ``dtype`` are kept.

    Raises:
        ValueError: For a type that centers cannot be rounded to.
    """
    if dtype == torch.bfloat16:
        return HalfRows()
    if dtype in (torch.float32, torch.float64):
        return FullRows(dtype)
    raise ValueError(f"centers in {dtype} cannot be updated by rows; make the head with float32 or bfloat16.")


STATE_DTYPES = ("float32", "bfloat16", "int8")


def state_storage(state_dtype: str | None, weight_dtype: torch.dtype, *, squares: bool = False) -> RowStorage:
    """How state is kept.

    Args:
        state_dtype: One of ``STATE_DTYPES``, or None for float32 (float64 beside float64 weights).
        weight_dtype: Type of the parameter.
        squares: Whether the state holds squares whose roots are divided by.
    """
    if state_dtype == "bfloat16":
        return HalfRows()
    if state_dtype == "int8":
        return SquareByteRows() if squares else SignedByteRows()
    return FullRows(torch.float64 if weight_dtype == torch.float64 and state_dtype is None else torch.float32)


def storage_of(dtype: torch.dtype) -> RowStorage:
    """The way to keep state that has tensors of ``dtype``.

    Raises:
        ValueError: If there is none.
    """
    if dtype == torch.bfloat16:
        return HalfRows()
    if dtype == torch.int8:
        return SignedByteRows()
    if dtype == torch.uint8:
        return SquareByteRows()
    if dtype in (torch.float32, torch.float64):
        return FullRows(dtype)
    raise ValueError(f"optimizer state in {dtype} is not of any state_dtype; there are {', '.join(STATE_DTYPES)}.")


def convert_rows(
    name: str,
    old: RowStorage,
    source: Mapping[str, Tensor],
    new: RowStorage,
    target: Mapping[str, Tensor],
    chunk_rows: int,
) -> None:
    """Brings state from one way of keeping it to another, rounded to the nearest, ``chunk_rows`` rows at a time."""
    num_rows = source[name].shape[0]
    for start in range(0, num_rows, chunk_rows):
        index = slice(start, min(start + chunk_rows, num_rows))
        rows = old.read(name, source, index)
        rows = rows.clone() if isinstance(old, FullRows) else rows
        if isinstance(new, FullRows):
            target[name][index] = rows
            continue
        half = torch.full((rows.shape[0], row_width(rows.shape)), 1 << 15, dtype=torch.int32, device=rows.device)
        new.write(name, target, RowChunk(index, rows), rows.float(), half.clone)


def stochastic_round_(rows: Tensor, noise: Tensor) -> Tensor:
    """Rounds float32 to numbers that bfloat16 has, in place: up with the probability of the part that is cut off.

    Args:
        rows: ``(n, *rest)`` float32, contiguous.
        noise: ``(n, prod(rest))`` int32, evenly from 0 to 65535.

    Returns:
        ``rows``. Infinities and NaN stay what they are; what lies beyond the largest number may become infinite.
    """
    # A float32 is a bfloat16 with 16 more bits: adding 16 random bits carries into the kept ones as often as it should.
    rows.view(torch.int32).view(noise.shape).add_(noise).bitwise_and_(-65536)
    return rows


def noise_of(noise: RowNoise, chunk: RowChunk, first_row: int, stream: int) -> Noise:
    """The random bits of the rows of a chunk; ``first_row`` is the global number of the parameter's first row."""

    def bits() -> Tensor:
        if isinstance(chunk.rows, slice):
            rows = torch.arange(chunk.rows.start, chunk.rows.stop, device=chunk.grad.device)
        else:
            rows = chunk.rows
        return noise.bits(rows + first_row, stream)

    return bits


def row_width(shape: torch.Size) -> int:
    """Elements of one row."""
    return prod(shape[1:])


def _take(tensor: Tensor, index: Tensor | slice) -> Tensor:
    return tensor[index] if isinstance(index, slice) else tensor.index_select(0, index)


def _put(tensor: Tensor, chunk: RowChunk, rows: Tensor) -> None:
    if isinstance(chunk.rows, slice):
        tensor[chunk.rows] = rows
        return
    if chunk.live is not None:  # padding leaves the tensor as it is
        rows = torch.where(chunk.live, rows, tensor.index_select(0, chunk.rows))
    tensor.index_copy_(0, chunk.rows, rows)
