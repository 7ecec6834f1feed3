"""Rows of Parquet files, by their row groups."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_pfc.data.errors import FormatError
from lightning_pfc.data.unpack_limit import check_unpacked
from lightning_pfc.storage.regular import check_regular

_LIMIT = 1 << 26  # bytes and elements in the footer


class ParquetRows:
    """A Parquet file, of which one row group is held per process.

    Text and bytes stay in dictionaries, where the file has them so: a value that is repeated a million times stays one.

    Args:
        path: the file.

    Raises:
        FormatError: the file is damaged, or claims more than it can hold.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = check_regular(path).st_size
        self._open: tuple[int, Any] = (-1, None)  # process, reader
        self._held: tuple[int, str, int, Any] = (-1, "", -1, None)  # process, column, group, values
        reader = self._reader()
        self.schema = reader.schema_arrow
        # Of the groups only: what is said of a column is read by code that ends the process where it does not fit.
        groups = [reader.metadata.row_group(n) for n in range(reader.num_row_groups)]
        self._rows = [group.num_rows for group in groups]
        if any(rows < 0 for rows in self._rows) or sum(self._rows) > self.size:
            raise FormatError(f"it claims {sum(self._rows):,} rows in {self.size:,} bytes", path=path)
        for number, group in enumerate(groups):
            check_unpacked(self.size, group.total_byte_size, what=f"group {number}", path=path)

    def columns(self, name: str) -> Iterator[Any]:
        """The column of each row group, validated."""
        for group in range(len(self._rows)):
            yield self._column(name, group)

    def locate(self, name: str) -> None:
        """Nothing to do: what is read of a column is its row group."""

    def value(self, name: str, group: int, row: int) -> Any:
        """Bytes, a mapping with ``bytes`` and ``path``, or None."""
        here = (os.getpid(), name, group)
        held = self._held  # one look: another thread may put its own there
        if held[:3] != here:
            self._held = held = (*here, self._column(name, group))
        return held[3][row].as_py()

    def _column(self, name: str, group: int) -> Any:
        reader = self._reader()
        column = reader.read_row_group(group, columns=[name], use_threads=False).column(0)
        column.validate(full=True)
        if len(column) != self._rows[group]:
            raise FormatError(f"group {group} has {len(column)} rows, not {self._rows[group]}", path=self.path)
        return column

    def _reader(self) -> Any:
        """The open file of this process."""
        pid, reader = self._open
        if pid != os.getpid():
            import pyarrow.parquet as pq

            limits = {"thrift_string_size_limit": _LIMIT, "thrift_container_size_limit": _LIMIT}
            reader = pq.ParquetFile(str(self.path), memory_map=False, **limits)
            schema = reader.schema
            texts = [
                schema.column(n).path for n in range(len(schema)) if schema.column(n).physical_type == "BYTE_ARRAY"
            ]
            if texts:
                kept = [path for path in texts if ".list." not in path and ".key_value." not in path]
                reader = pq.ParquetFile(str(self.path), memory_map=False, read_dictionary=kept, **limits)
            self._open = (os.getpid(), reader)
        return reader

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": (-1, None), "_held": (-1, "", -1, None)}
