"""Images in the rows of parquet or Arrow files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from lightning_pfc.data.errors import FormatError, missing_library
from lightning_pfc.data.formats.base import EncodedImages, contiguous_labels
from lightning_pfc.data.formats.folder import read_image_file

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "img", "bytes", "image_bytes")
LABEL_COLUMNS = ("label", "identity", "id", "cls", "class", "person", "target")
# What pyarrow raises when a file is damaged.
_ARROW_ERRORS = (OSError, ValueError, LookupError, NotImplementedError, MemoryError, OverflowError, RuntimeError)
_SUFFIXES = {".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow"}


class ParquetImages(EncodedImages):
    """One or many parquet or Arrow IPC files with an image and a label column.

    An image is bytes, or a struct with ``bytes`` and ``path`` as Hugging Face ``datasets`` writes it (of an image
    without bytes the file at ``path`` is read). A label is a whole number or text.

    Arrow files are mapped. Of parquet files one row group is held per process: reading in order is fast, and so is
    shuffled reading when row groups are small (``pfc-data convert`` writes 64 rows each).

    Args:
        path: a file, or a folder whose files with such a suffix are read in the order of their names, at any depth.
        image_column, label_column: their names; by default the first of the usual ones.

    Raises:
        MissingLibraryError: pyarrow is not installed.
        FileNotFoundError: there is no such file.
        FormatError: a file is damaged, or lacks a column.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        image_column: str | None = None,
        label_column: str | None = None,
    ) -> None:
        _pyarrow()
        self.source = str(path)
        self._files = _find_files(Path(path))
        self._open: dict[int, tuple[int, Any]] = {}  # file -> (process, reader); never pickled
        self._group: tuple[int, int, int, Any] = (-1, -1, -1, None)  # process, file, group, column
        labels: list[Any] = []
        groups: list[tuple[int, int, int]] = []  # file, group, rows
        self.image_column = image_column or self._find_column(0, IMAGE_COLUMNS, "image_column")
        self.label_column = label_column or self._find_column(0, LABEL_COLUMNS, "label_column")
        names = _class_label_names(self._schema(0), self.label_column)
        for number in range(len(self._files)):
            for group, column in enumerate(self._label_groups(number)):
                groups.append((number, group, len(column)))
                labels.append(self._label_values(number, column))
        table = np.array(groups, dtype=np.int64).reshape(-1, 3)
        self._groups = table[:, :2]
        self._starts = np.concatenate([[0], np.cumsum(table[:, 2])])
        if not self._starts[-1]:
            raise FormatError("there is not one row", path=path)
        keys = np.concatenate([part for part in labels if len(part)])
        self.labels, self.identities = contiguous_labels(keys)
        numbered = names is not None and self.identities.dtype.kind == "i"
        if names is not None and numbered and 0 <= self.identities[0] <= self.identities[-1] < len(names):
            # Names of a ClassLabel are kept in the order of their numbers, which the labels follow.
            self.identities = np.array([names[number] for number in self.identities.tolist()])

    @override
    def read(self, index: int) -> bytes:
        group, row = self._place(self._check_index(index))
        number, inside = (int(value) for value in self._groups[group])
        try:
            value = self._images_of(number, inside)[row].as_py()
        except _ARROW_ERRORS as error:
            raise FormatError(
                f"row {row} of group {inside} cannot be read: {error}", path=self._files[number]
            ) from error
        if isinstance(value, dict):
            data, path = value.get("bytes"), value.get("path")
            value = read_image_file(self._files[number].parent / path) if data is None and path else data
        if not isinstance(value, bytes) or not value:
            raise FormatError(
                f"row {row} of group {inside} holds no image in column {self.image_column!r}", path=self._files[number]
            )
        return value

    @override
    def locate(self, index: int) -> str:
        group, row = self._place(index)
        number, inside = (int(value) for value in self._groups[group])
        return f"{self._files[number]}, row {row} of group {inside}"

    def _place(self, index: int) -> tuple[int, int]:
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        return group, index - int(self._starts[group])

    def _reader(self, number: int) -> Any:
        """The open file of this process."""
        pid, reader = self._open.get(number, (-1, None))
        if pid != os.getpid():
            reader = _open_file(self._files[number])
            self._open[number] = (os.getpid(), reader)
        return reader

    def _schema(self, number: int) -> pa.Schema:
        reader = self._reader(number)
        return reader.schema_arrow if _is_parquet(self._files[number]) else reader.schema

    def _find_column(self, number: int, usual: tuple[str, ...], argument: str) -> str:
        names = self._schema(number).names
        for name in usual:
            if name in names:
                return name
        raise FormatError(f"none of its columns {names} has a usual name; give {argument}", path=self._files[number])

    def _label_groups(self, number: int) -> list[Any]:
        reader, path = self._reader(number), self._files[number]
        for name in (self.image_column, self.label_column):
            if name not in self._schema(number).names:
                raise FormatError(f"there is no column {name!r} among {self._schema(number).names}", path=path)
        try:
            if _is_parquet(path):
                return [
                    reader.read_row_group(group, columns=[self.label_column]).column(0)
                    for group in range(reader.num_row_groups)
                ]
            return [reader.get_batch(group).column(self.label_column) for group in range(reader.num_record_batches)]
        except _ARROW_ERRORS as error:
            raise FormatError(f"column {self.label_column!r} cannot be read: {error}", path=path) from error

    def _label_values(self, number: int, column: Any) -> np.ndarray[Any, Any]:
        path = self._files[number]
        if column.null_count:
            raise FormatError(f"column {self.label_column!r} has {column.null_count} empty cells", path=path)
        values = column.to_numpy() if hasattr(column, "num_chunks") else column.to_numpy(zero_copy_only=False)
        if values.dtype.kind in "iu":
            return np.asarray(values, dtype=np.int64)
        if len(values) and not isinstance(values[0], str):
            raise FormatError(f"column {self.label_column!r} holds {column.type}, not whole numbers or text", path=path)
        return np.asarray(values, dtype=np.str_)

    def _images_of(self, number: int, group: int) -> Any:
        here = (os.getpid(), number, group)
        held = self._group  # one look: another thread may put its own there
        if held[:3] == here:
            return held[3]
        reader = self._reader(number)
        if _is_parquet(self._files[number]):
            column = reader.read_row_group(group, columns=[self.image_column]).column(0)
        else:
            column = reader.get_batch(group).column(self.image_column)
        self._group = (*here, column)
        return column

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}, "_group": (-1, -1, -1, None)}


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise missing_library("pyarrow", "Reading and writing parquet and Arrow files") from error
    return pyarrow


def _is_parquet(path: Path) -> bool:
    return _SUFFIXES.get(path.suffix.lower()) != "arrow"


def _find_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"no such file or folder: {path}")
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
    if not found:
        raise FormatError(f"the folder holds no file that ends in {', '.join(_SUFFIXES)}", path=path)
    return found


def _open_file(path: Path) -> Any:
    pa = _pyarrow()
    try:
        if _is_parquet(path):
            import pyarrow.parquet as pq

            return pq.ParquetFile(path, memory_map=True)
        source = pa.memory_map(str(path))
        try:
            return pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            source.seek(0)
            return _StreamBatches(pa.ipc.open_stream(source))
    except _ARROW_ERRORS as error:
        raise FormatError(
            f"not a whole {'parquet' if _is_parquet(path) else 'Arrow'} file: {error}", path=path
        ) from error


class _StreamBatches:
    """An Arrow stream (what ``datasets`` caches) with the access by number that an Arrow file has."""

    def __init__(self, stream: Any) -> None:
        self.schema = stream.schema
        self._batches = list(stream)  # maps, copies nothing
        self.num_record_batches = len(self._batches)

    def get_batch(self, number: int) -> Any:
        return self._batches[number]


def _class_label_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Names of the classes, where ``datasets`` stored them with the schema."""
    import json

    raw = (schema.metadata or {}).get(b"huggingface")
    if raw is None:
        return None
    try:
        names = json.loads(raw)["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
