"""RecordIO files (``.rec``): finding, joining and parsing records, in plain Python.

A record is ``uint32 magic, uint32 (cflag << 29 | length), length bytes``, padded with zeros to four bytes. A payload
that contains the magic at a multiple of four bytes is written in parts (``cflag`` 1 first, 2 middle, 3 last; 0 is a
whole record), each such magic left out and put back when the parts are joined.
An image record's payload is a header ``<IfQQ`` (flag, label, id, id2), then ``flag`` float32 labels when ``flag > 0``,
then the image.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_pfc.data.errors import FormatError, reading
from lightning_pfc.names.renamed import renamed_names
from lightning_pfc.storage.positioned import PositionedFile

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
MAX_PART = (1 << 29) - 1  # bytes; the length has 29 bits
FLOAT32_EXACT = 1 << 24  # integers above this one may not survive as float32
MAX_RECORD = 64 << 20  # bytes; a larger one is taken for damage unless the caller says otherwise
_AHEAD = 1 << 14  # bytes that are read of a record at once: most records are smaller
HEADER = struct.Struct("<IfQQ")  # flag, label, id, id2
PREFIX = struct.Struct("<II")  # magic, kind and length


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
    if len(payload) < HEADER.size:
        raise FormatError(
            f"a record of {len(payload)} bytes has no room for its {HEADER.size}-byte header", path=path, offset=offset
        )
    flag, label, first, second = HEADER.unpack_from(payload)
    if flag == 0:
        return RecordHeader(0, (label,), first, second), payload[HEADER.size :]
    end = HEADER.size + 4 * flag
    if end > len(payload):
        raise FormatError(
            f"the header announces {flag} labels, but the record has {len(payload)} bytes", path=path, offset=offset
        )
    return RecordHeader(flag, struct.unpack_from(f"<{flag}f", payload, HEADER.size), first, second), payload[end:]


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
        magic, word = PREFIX.unpack_from(begin or self.file.read(offset, offset + 8))
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


__getattr__ = renamed_names(
    __name__,
    {
        "HeaderTable": "lightning_pfc.data.formats.recordio_headers:HeaderTable",
        "read_headers": "lightning_pfc.data.formats.recordio_headers:read_headers",
        "read_index": "lightning_pfc.data.formats.recordio_index:read_index",
    },
)
