"""The messages of an Arrow file or stream, as far as needed to know what they would unpack to before they are read.

An Arrow file is ``ARROW1``, then messages, then a footer that says where they are; a stream is messages only. A message
is ``0xffffffff``, the length of its flatbuffer, the flatbuffer, and a body of buffers. In a compressed body every
buffer begins with the length that it unpacks to.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from lightning_pfc.data.errors import FormatError
from lightning_pfc.data.unpack_limit import ALWAYS, TIMES, check_unpacked
from lightning_pfc.storage.positioned import PositionedFile

MAGIC = b"ARROW1"
_MAX_MESSAGE = 1 << 26  # bytes of a flatbuffer
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3


def check_messages(file: PositionedFile) -> bool:
    """Looks at the claims of every message.

    Args:
        file: an Arrow file or stream.

    Returns:
        Whether any body is compressed.

    Raises:
        FormatError: a message reaches beyond the file, or claims to unpack to far more than it can.
    """
    compressed = False
    for place, message, body, length in _messages(file):
        table = _Table(message, struct.unpack_from("<I", message, 0)[0])
        kind, batch = table.byte(1), table.table(2)
        if kind == _DICTIONARY_BATCH and batch is not None:
            batch = batch.table(1)
        elif kind != _RECORD_BATCH:
            continue
        if batch is None:
            continue
        _check_rows(batch, file, place)
        if batch.table(3) is None:
            continue
        compressed = True
        for offset, size in batch.pairs(2):
            if size >= 8:
                if not 0 <= offset <= length - size:
                    raise FormatError("a buffer lies outside its message", path=file.path, offset=place)
                (claim,) = struct.unpack("<q", file.read(body + offset, body + offset + 8))
                check_unpacked(size, max(claim, 0), what="a buffer", path=file.path)
    return compressed


def _check_rows(batch: _Table, file: PositionedFile, place: int) -> None:
    """Rows of a batch, and values and empty ones of each of its columns: Arrow believes them."""
    rows = batch.long(0)
    if not 0 <= rows <= file.size:
        raise FormatError(f"a batch of {rows} rows", path=file.path, offset=place)
    for length, empty in batch.pairs(1):
        if not 0 <= length <= ALWAYS + TIMES * file.size or not 0 <= empty <= length:
            raise FormatError(f"a column of {length} values, {empty} of them empty", path=file.path, offset=place)


def _messages(file: PositionedFile) -> Iterator[tuple[int, bytes, int, int]]:
    """``(place, flatbuffer, place of the body, its length)`` of the messages, in the order of the file."""
    place = 8 if file.read(0, min(6, file.size)) == MAGIC else 0
    while place + 8 <= file.size:
        mark, length = struct.unpack("<Ii", file.read(place, place + 8))
        if mark != 0xFFFFFFFF or length == 0:
            return  # the end, or a footer, or the layout of before 2019, which is never compressed
        begin = place + 8
        if not 8 <= length <= min(_MAX_MESSAGE, file.size - begin):
            raise FormatError(f"a message of {length} bytes", path=file.path, offset=place)
        message = file.read(begin, begin + length)
        body_length = _Table(message, struct.unpack_from("<I", message, 0)[0]).long(3)
        body = begin + length
        if not 0 <= body_length <= file.size - body:
            raise FormatError(
                f"a message's body of {body_length} bytes reaches beyond the end", path=file.path, offset=place
            )
        yield place, message, body, body_length
        place = body + body_length


class _Table:
    """A table of a flatbuffer; reading beyond the buffer raises struct.error."""

    def __init__(self, data: bytes, place: int) -> None:
        self.data = data
        self.place = place
        self.fields = place - struct.unpack_from("<i", data, place)[0]
        if self.fields < 0:
            raise ValueError("a damaged flatbuffer")

    def _at(self, field: int) -> int | None:
        size = struct.unpack_from("<H", self.data, self.fields)[0]
        if 4 + 2 * field + 2 > size:
            return None
        offset: int = struct.unpack_from("<H", self.data, self.fields + 4 + 2 * field)[0]
        return self.place + offset if offset else None

    def byte(self, field: int) -> int:
        place = self._at(field)
        return 0 if place is None else self.data[place]

    def long(self, field: int) -> int:
        place = self._at(field)
        return 0 if place is None else int(struct.unpack_from("<q", self.data, place)[0])

    def table(self, field: int) -> _Table | None:
        place = self._at(field)
        return None if place is None else _Table(self.data, place + struct.unpack_from("<I", self.data, place)[0])

    def pairs(self, field: int) -> Iterator[tuple[int, int]]:
        """Of a vector of structs of two int64."""
        place = self._at(field)
        if place is None:
            return
        start = place + struct.unpack_from("<I", self.data, place)[0]
        count = struct.unpack_from("<I", self.data, start)[0]
        if count > len(self.data) // 16:
            raise ValueError("a damaged flatbuffer")
        yield from struct.iter_unpack("<qq", self.data[start + 4 : start + 4 + 16 * count])
