"""Rows of Arrow files and streams: labels at once, images one by one from where they lie in the file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_pfc.data.errors import FormatError
from lightning_pfc.data.formats.arrow_messages import check_messages
from lightning_pfc.storage.positioned import PositionedFile

# Of a column of bytes in a batch: bytes of an offset, where the offsets begin, where the data begins and how long it
# is, where the bits of what is there begin (-1: all is), which row is the first.
_PLACES = 6
Places = npt.NDArray[np.int64]


class ArrowRows:
    """An Arrow IPC file or stream. Its batches are the groups of rows.

    Bytes that lie in the file as they are (not compressed) are read from there, one image at a time: no map is kept,
    and no batch is held. Of a compressed file the batch that was read last is held.

    Args:
        path: the file.

    Raises:
        FormatError: the file is damaged, or is a compressed stream.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = PositionedFile(path)
        compressed = check_messages(self.file)
        reader = self._reader()
        self.is_stream = not hasattr(reader, "num_record_batches")
        if compressed and self.is_stream:
            raise FormatError("a compressed Arrow stream has no positions; write it as an Arrow file", path=path)
        self.schema = reader.schema
        self._places: dict[str, list[dict[str, Places] | None]] = {}
        self._held: tuple[int, str, int, Any] = (-1, "", -1, None)  # process, column, group, values

    def columns(self, name: str) -> Iterator[Any]:
        """The column of each batch, validated."""
        for batch in self._batches([name]):
            column = batch.column(name)
            column.validate(full=True)
            yield column

    def locate(self, name: str) -> None:
        """Finds where the bytes of a column lie, before the first of them is read."""
        import pyarrow as pa

        with pa.memory_map(str(self.path)) as whole:
            start = whole.read_buffer(1).address if self.file.size else 0
            whole.seek(0)
            reader = self._open(whole)
            batches: Any = reader if self.is_stream else (reader.get_batch(n) for n in range(reader.num_record_batches))
            self._places[name] = [_places(batch.column(name), start, self.file.size) for batch in batches]

    def value(self, name: str, group: int, row: int) -> Any:
        """Bytes, a mapping with ``bytes`` and ``path``, or None."""
        found = self._places[name][group]
        if found is None:
            return self._batch_values(name, group)[row].as_py()
        if "" in found:
            return self._bytes(found[""], row)
        values: dict[str, Any] = {key: self._bytes(places, row) for key, places in found.items()}
        return {key: v.decode("utf-8") if key == "path" and v is not None else v for key, v in values.items()}

    def _bytes(self, places: Places, row: int) -> bytes | None:
        width, offsets, data, size, bits, first = places.tolist()
        row += first
        if bits >= 0 and not self.file.read(bits + row // 8, bits + row // 8 + 1)[0] >> row % 8 & 1:
            return None
        place = offsets + row * width
        begin, end = np.frombuffer(self.file.read(place, place + 2 * width), f"<i{width}").tolist()
        if not 0 <= begin <= end <= size:
            raise FormatError(f"bytes {begin} to {end} of {size}", path=self.path, offset=place)
        return self.file.read(data + begin, data + end)

    def _batch_values(self, name: str, group: int) -> Any:
        here = (os.getpid(), name, group)
        held = self._held  # one look: another thread may put its own there
        if held[:3] != here:
            column = self._reader([name]).get_batch(group).column(name)
            column.validate(full=True)
            self._held = held = (*here, column)
        return held[3]

    def _batches(self, columns: list[str]) -> Iterator[Any]:
        reader = self._reader(columns)
        if self.is_stream:
            yield from reader
        else:
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))

    def _reader(self, columns: list[str] | None = None) -> Any:
        import pyarrow as pa

        return self._open(pa.OSFile(str(self.path)), columns)

    def _open(self, source: Any, columns: list[str] | None = None) -> Any:
        import pyarrow as pa

        fields = None if columns is None else [self.schema.get_field_index(name) for name in columns]
        options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
        try:
            return pa.ipc.open_file(source, options=options)
        except pa.ArrowInvalid:
            source.seek(0)
            return pa.ipc.open_stream(source, options=options)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": (-1, "", -1, None)}


def _places(column: Any, start: int, size: int) -> dict[str, Places] | None:
    """Where the bytes of a column lie, under ``""``, or of a struct under ``bytes`` and ``path``; None: elsewhere."""
    import pyarrow as pa

    if not pa.types.is_struct(column.type):
        return None if (found := _places_of(column, start, size)) is None else {"": found}
    out: dict[str, Places] = {}
    names = [field.name for field in column.type]
    if column.buffers()[0] is not None or "bytes" not in names:
        return None  # rows without a struct are rare; Arrow itself sees them
    for name in ("bytes", "path"):
        if name in names:
            child = column.field(name)
            if pa.types.is_null(child.type):
                continue
            found = _places_of(child, start, size)
            if found is None:
                return None
            out[name] = found
    return out


def _places_of(column: Any, start: int, size: int) -> Places | None:
    import pyarrow as pa

    small = pa.types.is_binary(column.type) or pa.types.is_string(column.type)
    if not small and not (pa.types.is_large_binary(column.type) or pa.types.is_large_string(column.type)):
        return None
    width = 4 if small else 8
    bits, offsets, data = column.buffers()
    rows = column.offset + len(column)
    for buffer, needed in ((bits, -(-rows // 8)), (offsets, (rows + 1) * width), (data, 0)):
        inside = buffer is None or (start <= buffer.address and buffer.address + buffer.size <= start + size)
        if buffer is not None and buffer.size and (not inside or buffer.size < needed):
            return None
    if offsets is None or (not offsets.size and rows):
        return None
    where = [-1 if b is None or not b.size else b.address - start for b in (bits, offsets, data)]
    length = 0 if data is None else data.size
    return np.array([width, where[1], max(where[2], 0), length, where[0], column.offset], dtype=np.int64)
