"""Headers of many records of a RecordIO file at once, as columns, without their images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from lightning_pfc.data.errors import reading
from lightning_pfc.data.formats.recordio import HEADER, MAGIC, MAX_PART, RecordFile

_T = TypeVar("_T", np.uint32, np.uint64, np.float32)


@dataclass(frozen=True)
class HeaderTable:
    """Headers of many records, as columns of equal length.

    Attributes:
        flag: uint32.
        label: float32, the first label (of the array when ``flag > 0``).
        second: float32, the second label, 0 where there is none.
        id: uint64.
        id2: uint64.
        length: int64, bytes after the header and the labels: the size of the image.
    """

    flag: npt.NDArray[np.uint32]
    label: npt.NDArray[np.float32]
    second: npt.NDArray[np.float32]
    id: npt.NDArray[np.uint64]
    id2: npt.NDArray[np.uint64]
    length: npt.NDArray[np.int64]


def read_headers(records: RecordFile, offsets: npt.NDArray[np.int64], *, chunk: int = 1 << 16) -> HeaderTable:
    """Headers of the records at ``offsets``, without copying their images.

    Args:
        records: the file.
        offsets: ``(n,)`` int64 byte offsets.
        chunk: how many headers are parsed at a time; bounds the memory to about 100 bytes each.

    Raises:
        FormatError: at one of the offsets no record with a whole header begins.
    """
    parts = [_read_chunk(records, offsets[start : start + chunk]) for start in range(0, len(offsets), chunk)]
    if not parts:
        parts = [_read_chunk(records, np.zeros(0, np.int64))]
    columns = ("flag", "label", "second", "id", "id2", "length")
    return HeaderTable(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))


def _read_chunk(records: RecordFile, offsets: npt.NDArray[np.int64]) -> HeaderTable:
    size, n = records.file.size, len(offsets)
    width = 8 + HEADER.size + 8  # prefix, header, two labels
    raw = np.zeros((n, width), np.uint8)
    inside = (offsets >= 0) & (offsets <= size - width)
    with reading(records.path, "a RecordIO file"):
        found = records.file.gather(offsets[inside].tolist(), width)
    raw[inside] = np.frombuffer(found, np.uint8).reshape(-1, width)
    word = _column(raw, 4, np.uint32)
    length = (word & MAX_PART).astype(np.int64)
    flag = _column(raw, 8, np.uint32)
    array = flag > 0
    label = np.where(array, _column(raw, 32, np.float32), _column(raw, 12, np.float32))
    second = np.where(flag > 1, _column(raw, 36, np.float32), np.float32(0))
    first_id, second_id = _column(raw, 16, np.uint64), _column(raw, 24, np.uint64)
    rest = length - HEADER.size - 4 * flag.astype(np.int64)
    whole = (
        inside
        & (_column(raw, 0, np.uint32) == MAGIC)
        & (word >> 29 == 0)
        & (rest >= 0)
        & (offsets + 8 + length <= size)
    )
    for row in np.flatnonzero(~whole):  # parts, the end of the file, and damage
        offset = int(offsets[row])
        header, image = records.read(offset)
        flag[row], first_id[row], second_id[row] = header.flag, header.id, header.id2
        label[row], second[row] = header.labels[0], header.labels[1] if len(header.labels) > 1 else 0
        rest[row] = len(image)
    return HeaderTable(flag, label, second, first_id, second_id, rest)


def _column(raw: npt.NDArray[np.uint8], start: int, dtype: type[_T]) -> npt.NDArray[_T]:
    width = np.dtype(dtype).itemsize
    column = np.ascontiguousarray(raw[:, start : start + width]).view(np.dtype(dtype).newbyteorder("<"))
    values: npt.NDArray[_T] = column.reshape(-1).astype(dtype, copy=False)
    return values
