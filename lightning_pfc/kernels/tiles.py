"""Which tile a kernel gets: a table by chip and width, and no search while a program runs.

A search (``triton.autotune``) measures, so it chooses differently from run to run, waits for the device and cannot be
part of a graph. A table gives the same kernel, and so the same bits, on every start. The entries for each chip are
*predicted* from its register file and shared memory; none was timed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """The shape of one program of a kernel.

    Attributes:
        rows: it works on at once.
        columns: of a row at once; the whole row, padded to a power of two, for kernels that need it whole.
        warps: of 32 threads.
    """

    rows: int
    columns: int
    warps: int


LARGEST_WIDTH = 4096
"""The widest row that a program holds whole; wider ones take the path of plain torch."""

CHIPS = (80, 89, 90, 100, 120)
"""Compute capabilities that the kernels are compiled for, times ten."""

SHARED_BYTES = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
"""Shared memory that one program may have, by chip (CUDA C++ programming guide, table of compute capabilities)."""

PROCESSORS = {80: 108, 89: 142, 90: 132, 100: 148, 120: 188}
"""Multiprocessors of the largest part of each kind: A100, L40S, H200, B200, RTX PRO 6000."""


_pretended: list[int] = []


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below ``number``."""
    return 1 << max(0, number - 1).bit_length()


def row_tile(width: int, tensors: int = 1) -> Tile:
    """For kernels that hold ``tensors`` whole rows in registers: up to 16 numbers of each a thread."""
    columns = max(16, power_of_two(width))
    warps = 4 if columns <= 1024 else 8
    rows = max(1, min(8, 16 // tensors * 32 * warps // columns))
    return Tile(1 << (rows.bit_length() - 1), columns, warps)


def score_tile(chip: int, batch: int) -> Tile:
    """For kernels that pass over scores (B, K): 16 numbers a thread, wide rows for whole cache lines."""
    if batch <= 4:
        return Tile(power_of_two(batch), 1024, 4)
    return Tile(8, 256, 4) if chip >= 90 else Tile(4, 512, 4)


def splits(chip: int, row_blocks: int, column_tiles: int) -> int:
    """In how many parts the columns are summed so that every multiprocessor has some eight programs."""
    wanted = -(-8 * PROCESSORS.get(chip, 132) // max(1, row_blocks))
    return max(1, min(wanted, column_tiles))


def chip_of(device: torch.device) -> int:
    """The chip that a device has, as in :data:`CHIPS`; 90 where there is none (fake tensors, the interpreter)."""
    if _pretended:
        return _pretended[-1]
    return _capability(device)


@cache
def _capability(device: torch.device) -> int:
    if device.type != "cuda" or not torch.cuda.is_available():
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@contextmanager
def pretended_chip(chip: int) -> Iterator[None]:
    """While open, every device has this chip: to compile for chips that are not there."""
    _pretended.append(chip)
    try:
        yield
    finally:
        _pretended.pop()
