"""Writing RecordIO: files that mxnet reads, in InsightFace's layout or flat."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from types import TracebackType

import numpy as np

from lightning_pfc.data.formats.recordio import FLOAT32_EXACT, HEADER, MAGIC, MAGIC_BYTES, MAX_PART, PREFIX, RecordFile
from lightning_pfc.data.formats.recordio_index import read_index


def split_at_magic(payload: bytes) -> list[bytes]:
    """Cuts a payload where it contains the magic at a multiple of four bytes; each such magic is left out."""
    cuts = []
    place = payload.find(MAGIC_BYTES)
    while place != -1:
        if place % 4 == 0:
            cuts.append(place)
            place = payload.find(MAGIC_BYTES, place + 4)
        else:
            place = payload.find(MAGIC_BYTES, place + 1)
    parts, start = [], 0
    for cut in cuts:
        parts.append(payload[start:cut])
        start = cut + 4
    return [*parts, payload[start:]]


def pack_record(payload: bytes) -> bytes:
    """A record as it stands in the file, in several parts if the payload contains the magic.

    Raises:
        ValueError: a part would be longer than 2^29 - 1 bytes.
    """
    parts = split_at_magic(payload)
    out: list[bytes] = []
    for number, part in enumerate(parts):
        if len(part) > MAX_PART:
            raise ValueError(f"payload has {len(payload)} bytes, but a record holds at most {MAX_PART}.")
        cflag = 0 if len(parts) == 1 else 1 if number == 0 else 3 if number == len(parts) - 1 else 2
        out += (PREFIX.pack(MAGIC, cflag << 29 | len(part)), part, bytes(-len(part) & 3))
    return b"".join(out)


def pack_image(label: int, image: bytes, *, key: int) -> bytes:
    """Payload of an image record. A label from 2^24 on is stored exactly in ``id2`` and rounded as float32.

    Raises:
        ValueError: ``label`` is negative or does not fit 63 bits.
    """
    if not 0 <= label < 1 << 63:
        raise ValueError(f"label is {label}, but class numbers are 0 to 2^63 - 1.")
    return HEADER.pack(0, label, key, label if label >= FLOAT32_EXACT else 0) + image


def pack_range(start: int, stop: int, *, key: int) -> bytes:
    """Payload of a record without image: flag 2, labels ``[start, stop]``.

    When a bound reaches 2^24 both are stored exactly in ``id`` and ``id2`` (rounded as float32); otherwise ``id`` is
    the key and ``id2`` is 0, as mxnet writes them.
    """
    wide = stop >= FLOAT32_EXACT
    first, second = (start, stop) if wide else (key, 0)
    return HEADER.pack(2, 0.0, first, second) + struct.pack("<2f", np.float32(start), np.float32(stop))


class RecordWriter:
    """Appends records to a ``.rec`` file and their keys to the ``.idx`` file beside it.

    Args:
        path: the ``.rec`` file to write; the index has the same name with ``.idx``.
        resume: go on behind the last whole record of files an interrupted writer left. What follows it is cut off.

    Attributes:
        next_key: the key of the next record; with ``resume``, one behind the last whole record found.
    """

    def __init__(self, path: str | os.PathLike[str], *, resume: bool = False) -> None:
        self.path = Path(path)
        self.index_path = self.path.with_suffix(".idx")
        self.next_key = 0
        size = index_size = 0
        if resume and self.path.is_file() and self.index_path.is_file():
            self.next_key, size, index_size = _last_whole_record(self.path, self.index_path)
        mode = "r+b" if self.path.is_file() and size else "wb"
        self._rec = self.path.open(mode)
        self._idx = self.index_path.open("r+b" if self.index_path.is_file() and size else "wb")
        for file, end in ((self._rec, size), (self._idx, index_size)):
            file.truncate(end)
            file.seek(end)
        self._offset = size

    def write(self, payload: bytes) -> int:
        """Appends a record under the next key and returns that key."""
        record = pack_record(payload)
        key = self.next_key
        self._rec.write(record)
        self._idx.write(b"%d\t%d\n" % (key, self._offset))
        self._offset += len(record)
        self.next_key += 1
        return key

    def close(self) -> None:
        """Writes what is buffered to the disk, records before index."""
        if not self._rec.closed:
            for file in (self._rec, self._idx):
                file.flush()
                os.fsync(file.fileno())
                file.close()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _last_whole_record(path: Path, index_path: Path) -> tuple[int, int, int]:
    """``(next key, end of the last whole record, end of its line in the index)``."""
    text = index_path.read_bytes()
    text = text[: text.rfind(b"\n") + 1]
    if not text:
        return 0, 0, 0
    index_path.write_bytes(text)
    keys, offsets = read_index(index_path)
    records = RecordFile(path, max_record=1 << 40)
    # The index may have reached the disk before the records did: step back to the last record that is all there.
    for last in range(len(keys) - 1, -1, -1):
        try:
            _, end = records._record(int(offsets[last]))
        except ValueError:
            continue
        if end > records.file.size:
            continue
        lines = b"".join(
            b"%d\t%d\n" % pair for pair in zip(keys[: last + 1].tolist(), offsets[: last + 1].tolist(), strict=True)
        )
        index_path.write_bytes(lines)
        return int(keys[last]) + 1, end, len(lines)
    return 0, 0, 0
