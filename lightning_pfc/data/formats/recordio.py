"""RecordIO files (``.rec`` with ``.idx``): finding, joining and parsing records, in plain Python and numpy.

A record is ``uint32 magic, uint32 (cflag << 29 | length), length bytes``, padded with zeros to four bytes. A payload
that contains the magic at a multiple of four bytes is written in parts (``cflag`` 1 first, 2 middle, 3 last; 0 is a
whole record), each such magic left out and put back when the parts are joined.
An image record's payload is a header ``<IfQQ`` (flag, label, id, id2), then ``flag`` float32 labels when ``flag > 0``,
then the image. The index has lines ``key<tab>offset``.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from lightning_pfc.data.errors import FormatError, reading
from lightning_pfc.storage.positioned import PositionedFile
from lightning_pfc.storage.regular import read_regular

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
MAX_PART = (1 << 29) - 1  # bytes; the length has 29 bits
FLOAT32_EXACT = 1 << 24  # integers above this one may not survive as float32
MAX_INDEX = 16 << 30  # bytes
MAX_RECORD = 64 << 20  # bytes; a larger one is taken for damage unless the caller says otherwise
_AHEAD = 1 << 14  # bytes that are read of a record at once: most records are smaller
_T = TypeVar("_T", np.uint32, np.uint64, np.float32)
_PREFIX = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")


class RecordHeader(NamedTuple):
    """Header of an image record.

    Attributes:
        flag: number of labels that follow the header; 0 when the one label stands in the header.
        labels: the labels, float32 values: one when ``flag`` is 0.
        id: unsigned 64 bits, by custom the key of the record.
        id2: unsigned 64 bits, by custom 0.
    """

    flag: int
    labels: tuple[float, ...]
    id: int
    id2: int


def unpack(
    payload: bytes, *, path: str | os.PathLike[str] | None = None, offset: int | None = None
) -> tuple[RecordHeader, bytes]:
    """Splits the payload of an image record into header and image.

    Raises:
        FormatError: the payload is shorter than its header says.
    """
    if len(payload) < _HEADER.size:
        raise FormatError(
            f"a record of {len(payload)} bytes has no room for its {_HEADER.size}-byte header", path=path, offset=offset
        )
    flag, label, first, second = _HEADER.unpack_from(payload)
    if flag == 0:
        return RecordHeader(0, (label,), first, second), payload[_HEADER.size :]
    end = _HEADER.size + 4 * flag
    if end > len(payload):
        raise FormatError(
            f"the header announces {flag} labels, but the record has {len(payload)} bytes", path=path, offset=offset
        )
    return RecordHeader(flag, struct.unpack_from(f"<{flag}f", payload, _HEADER.size), first, second), payload[end:]


class RecordFile:
    """Random access to the records of a ``.rec`` file by byte offset. Picklable, fork- and spawn-safe.

    Args:
        path: the ``.rec`` file.
        max_record: records with more bytes than this are refused: a damaged length must not fill the memory.
    """

    def __init__(self, path: str | os.PathLike[str], *, max_record: int = MAX_RECORD) -> None:
        self.file = PositionedFile(path)
        self.max_record = max_record

    @property
    def path(self) -> Path:
        """The ``.rec`` file."""
        return self.file.path

    def payload(self, offset: int) -> bytes:
        """The joined payload of the record that begins at byte ``offset``.

        Raises:
            FormatError: there is no whole record at ``offset``, or it is larger than ``max_record``.
        """
        with reading(self.path, "a RecordIO file"):
            return self._record(offset)[0]

    def read(self, offset: int) -> tuple[RecordHeader, bytes]:
        """Header and image bytes of the image record at ``offset``; raises as ``payload``."""
        return unpack(self.payload(offset), path=self.path, offset=offset)

    def scan(self) -> Iterator[int]:
        """Offsets of all records in the order of the file, found by walking over it.

        Raises:
            FormatError: at the first place where no record begins.
        """
        offset = 0
        while offset < self.file.size:
            start = offset
            cflag, _, offset = self._part(start)
            if cflag in (2, 3):
                raise FormatError(f"a record begins with part {cflag} of another one", path=self.path, offset=start)
            while cflag in (1, 2):
                cflag, _, offset = self._part(offset)
                if cflag not in (2, 3):
                    raise FormatError(
                        "the parts of a record are not followed by its last one", path=self.path, offset=start
                    )
            yield start

    def warn_of_a_rest(self, offsets: npt.NDArray[np.int64], index: str | os.PathLike[str]) -> None:
        """Say that records follow the last one of an index: it belongs to a shorter file, or was cut short."""
        if not len(offsets):
            return
        with reading(self.path, "a RecordIO file"):
            rest = self.file.size - self._record(int(offsets.max()))[1]
        if rest > 0:
            warnings.warn(
                f"{index} ends before {self.path} does: {rest:,} bytes after its last record are not read. Remove it, "
                "and `pfc-data index` writes a whole one.",
                stacklevel=2,
            )

    def _part(self, offset: int, begin: bytes = b"") -> tuple[int, int, int]:
        """``(cflag, length, offset of what follows)`` of the part at ``offset``, whose ``begin`` may be known."""
        if offset < 0 or offset + 8 > self.file.size:
            raise FormatError(
                f"a record should begin here, but the file has {self.file.size} bytes", path=self.path, offset=offset
            )
        magic, word = _PREFIX.unpack_from(begin or self.file.read(offset, offset + 8))
        if magic != MAGIC:
            raise FormatError(
                f"no record begins here: found {magic:#010x} instead of {MAGIC:#010x}", path=self.path, offset=offset
            )
        length = word & MAX_PART
        end = offset + 8 + length
        if end > self.file.size:
            raise FormatError(
                f"a record of {length} bytes reaches beyond the end of the file ({self.file.size} bytes)",
                path=self.path,
                offset=offset,
            )
        return word >> 29, length, end + (-length & 3)

    def _record(self, offset: int) -> tuple[bytes, int]:
        """Joined payload and the offset of what follows."""
        size = self.file.size
        begin = self.file.read(offset, min(offset + _AHEAD, size)) if 0 <= offset <= size - 8 else b""
        cflag, length, after = self._part(offset, begin)
        if length > self.max_record:
            raise FormatError(
                f"a record of {length} bytes is larger than max_record={self.max_record}", path=self.path, offset=offset
            )
        first = begin[8 : 8 + length]
        if len(first) < length:
            first += self.file.read(offset + 8 + len(first), offset + 8 + length)
        if cflag == 0:
            return first, after
        if cflag != 1:
            raise FormatError(
                f"a record begins with cflag {cflag}; 0 (whole) or 1 (first part) was expected",
                path=self.path,
                offset=offset,
            )
        parts, total = [first], length
        while cflag != 3:
            place = after
            cflag, length, after = self._part(place)
            if cflag not in (2, 3):
                raise FormatError(
                    f"cflag {cflag} inside the record that begins at byte {offset}", path=self.path, offset=place
                )
            total += length + 4
            if total > self.max_record:
                raise FormatError(
                    f"a record of more than {total - 1} bytes is larger than max_record={self.max_record}",
                    path=self.path,
                    offset=offset,
                )
            parts += (MAGIC_BYTES, self.file.read(place + 8, place + 8 + length))
        return b"".join(parts), after


def read_index(path: str | os.PathLike[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Reads an ``.idx`` file.

    Returns:
        keys and byte offsets, ``(n,)`` int64 each, sorted by key (the file need not be).

    Raises:
        FormatError: a line is not ``key<tab>offset`` with two whole numbers, or a key occurs twice.
    """
    with reading(path, "an index of RecordIO"):
        text = read_regular(path, MAX_INDEX)
    if not text.isascii():
        raise FormatError("an index holds only digits, tabs and line ends", path=path, offset=_first_non_ascii(text))
    pairs = _numbers(text)
    if pairs is None:
        pairs = _parse_slowly(text, path)
    keys, offsets = np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
    if len(keys) > 1 and not (keys[1:] > keys[:-1]).all():
        order = np.argsort(keys, kind="stable")
        keys, offsets = keys[order], offsets[order]
        twice = np.flatnonzero(keys[1:] == keys[:-1])
        if len(twice):
            raise FormatError(f"key {keys[twice[0]]} occurs more than once", path=path)
    return keys, offsets


def _first_non_ascii(text: bytes) -> int:
    return int(np.flatnonzero(np.frombuffer(text, np.uint8) > 127)[0])


def _numbers(text: bytes) -> npt.NDArray[np.int64] | None:
    """All numbers of a clean index as ``(n, 2)``, or ``None`` if it must be looked at line by line."""
    lines = text.count(b"\n") + (not text.endswith(b"\n") and bool(text))
    if text.count(b"\t") != lines or any(
        bad in text for bad in (b"-", b"+", b".", b"\n\n", b"\t\t", b"\n\t", b"\t\n", b"\0")
    ):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            flat = np.fromstring(text.decode("ascii"), dtype=np.int64, sep=" ")
        except (ValueError, DeprecationWarning):
            return None
    # A number that does not fit 64 bits is clipped by the parser.
    if len(flat) != 2 * lines or (len(flat) and (flat.max() == np.iinfo(np.int64).max or flat.min() < 0)):
        return None
    return flat.reshape(-1, 2)


def _parse_slowly(text: bytes, path: str | os.PathLike[str]) -> npt.NDArray[np.int64]:
    pairs: list[tuple[int, int]] = []
    place = 0
    for line in text.split(b"\n"):
        fields = line.split()
        if fields:
            if len(fields) != 2 or not all(field.isdigit() and len(field) < 19 for field in fields):
                raise FormatError(f"expected `key<tab>offset`, found {line[:60]!r}", path=path, offset=place)
            pairs.append((int(fields[0]), int(fields[1])))
        place += len(line) + 1
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


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
    width = 8 + _HEADER.size + 8  # prefix, header, two labels
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
    rest = length - _HEADER.size - 4 * flag.astype(np.int64)
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
