"""Checksums of an ordinary zip file, in the comment at its end, which other readers of such files pass over.

``torch.save`` writes zip files. What is sealed stays one: ``torch.load`` reads it as before.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from lightning_pfc.storage.first_error import FirstError

MAGIC = b"PFCSEAL1"
SEAL_BLOCK = 64 << 20  # bytes under one checksum: those of 1 TB fit into a comment
_PIECE = 4 << 20
_END = 22  # bytes of the record that ends a zip file; the last two are the length of the comment
_HEAD, _TAIL = struct.Struct("<8sQ"), struct.Struct("<II8s")
_MOST_COMMENT = 0xFFFF


class SealWriter(FirstError):
    """What ``torch.save`` takes for a file: sums up what goes through, and adds the sums at the end.

    Args:
        sink: takes the bytes, from front to back.
    """

    def __init__(self, sink: Callable[[Any], object]) -> None:
        super().__init__(sink)
        self._held = bytearray()  # the last bytes so far: the end record must tell the length of the comment
        self._sums: list[int] = []
        self._sum, self._filled, self._size = 0, 0, 0

    def finish(self) -> None:
        """Add the sums.

        Raises:
            Exception: the first one that the sink raised.
            ValueError: if what was written is not a zip file, or one of more than a terabyte.
        """
        super().finish()
        end = bytes(self._held)
        if len(end) != _END or not end.startswith(b"PK\x05\x06") or not end.endswith(b"\0\0"):
            raise ValueError("what was to be sealed is not a zip file without a comment")
        count = -(-(self._size + _END) // SEAL_BLOCK)
        length = _HEAD.size + 4 * count + _TAIL.size
        if length > _MOST_COMMENT:
            raise ValueError(f"{self._size} bytes are too many for one file; write a folder, on two ranks or more")
        self._emit(memoryview(end[:-2] + struct.pack("<H", length)))
        if self._filled:
            self._close_block()
        body = _HEAD.pack(MAGIC, self._size) + struct.pack(f"<{count}I", *self._sums)
        self._sink(memoryview(body + _TAIL.pack(count, zlib.crc32(body), MAGIC)))

    def _take(self, view: memoryview) -> None:
        if len(view) >= _END:
            self._emit(memoryview(bytes(self._held)))
            self._emit(view[:-_END])
            self._held[:] = view[-_END:]
            return
        self._held += view
        surplus = len(self._held) - _END
        if surplus > 0:
            self._emit(memoryview(bytes(self._held[:surplus])))
            del self._held[:surplus]

    def _emit(self, view: memoryview) -> None:
        while len(view):
            part = view[: min(_PIECE, SEAL_BLOCK - self._filled)]
            self._sum = zlib.crc32(part, self._sum)
            self._filled += len(part)
            self._size += len(part)
            self._sink(part)
            if self._filled == SEAL_BLOCK:
                self._close_block()
            view = view[len(part) :]

    def _close_block(self) -> None:
        self._sums.append(self._sum)
        self._sum, self._filled = 0, 0


@dataclass(frozen=True)
class Seal:
    """The checksums of a file.

    Attributes:
        size: bytes that they cover, from the front: all but themselves.
        crc32: of each block of :data:`SEAL_BLOCK` bytes.
    """

    size: int
    crc32: tuple[int, ...]

    def check(self, file: BinaryIO, share: tuple[int, int] = (0, 1)) -> None:
        """Compare the blocks with their sums.

        Args:
            file: open for reading.
            share: (i, n) checks every n-th block, from block i on.

        Raises:
            ValueError: saying where they differ.
        """
        buffer = bytearray(min(_PIECE, max(1, self.size)))
        for index in range(share[0], len(self.crc32), share[1]):
            start, total = index * SEAL_BLOCK, 0
            stop = min(start + SEAL_BLOCK, self.size)
            file.seek(start)
            while start < stop:
                part = memoryview(buffer)[: stop - start]
                count = file.readinto(part)  # type: ignore[attr-defined]
                if not count:
                    raise ValueError(f"it ends at byte {start}, before its {self.size} bytes")
                total = zlib.crc32(part[:count], total)
                start += count
            if total != self.crc32[index]:
                raise ValueError(f"bytes from {index * SEAL_BLOCK} on do not match their checksum")


def read_seal(file: BinaryIO) -> Seal | None:
    """The checksums at the end of a file; None if there are none.

    Raises:
        ValueError: if they are damaged.
    """
    size = file.seek(0, os.SEEK_END)
    if size < _HEAD.size + _TAIL.size + _END:
        return None
    file.seek(size - _TAIL.size)
    count, check, magic = _TAIL.unpack(file.read(_TAIL.size))
    if magic != MAGIC:
        return None
    length = _HEAD.size + 4 * count
    if length + _TAIL.size > min(_MOST_COMMENT, size):
        raise ValueError("its checksums are damaged")
    file.seek(size - _TAIL.size - length)
    body = file.read(length)
    first, covered = _HEAD.unpack(body[: _HEAD.size])
    if first != MAGIC or zlib.crc32(body) != check or covered != size - length - _TAIL.size:
        raise ValueError("its checksums are damaged")
    if count != -(-covered // SEAL_BLOCK):
        raise ValueError("it has another number of checksums than blocks")
    return Seal(covered, struct.unpack(f"<{count}I", body[_HEAD.size :]))
