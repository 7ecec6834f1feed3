"""Images in the rows of Parquet or Arrow files."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from lightning_pfc.checked import checked
from lightning_pfc.data.entries import files_below
from lightning_pfc.data.errors import FormatError, missing_library, reading
from lightning_pfc.data.formats.arrow import ArrowRows
from lightning_pfc.data.formats.base import EncodedImages, contiguous_labels
from lightning_pfc.data.formats.folder import read_image_file
from lightning_pfc.data.formats.label_values import refuse_no_identity
from lightning_pfc.data.formats.parquet_rows import ParquetRows
from lightning_pfc.data.formats.patterns import Paths, files_of, is_pattern, nothing_at
from lightning_pfc.data.formats.texts import text_array
from lightning_pfc.data.parts import refuse_missing_shards, refuse_several_splits
from lightning_pfc.storage.enclosure import Enclosure

IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "img", "bytes", "image_bytes")
LABEL_COLUMNS = ("label", "identity", "id", "cls", "class", "person", "target")
_SUFFIXES = {".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow"}
Rows = ParquetRows | ArrowRows
Keys = list[str] | npt.NDArray[np.int64]


@checked
class ParquetImages(EncodedImages):
    """One or many Parquet or Arrow IPC files with an image and a label column.

    An image is bytes, or a struct with ``bytes`` and ``path`` as Hugging Face ``datasets`` writes it (of an image
    without bytes the file at ``path`` is read, which must lie below the data). A label is a whole number or text.

    Images of Arrow files are read where they lie. Of Parquet files one row group is held per process: reading in order
    is fast, and so is shuffled reading when row groups are small (``pfc-data convert`` writes 64 rows each).

    Args:
        path: a file, a pattern (``train-*.parquet``), or a folder whose files with such a suffix are read in the order
            of their names, at any depth; or several files.
        image_column, label_column: their names; by default the first of the usual ones.
        names: of the classes, by their numbers, where the files do not tell.
        allow: further folders that paths and links may lead into.

    Raises:
        MissingLibraryError: pyarrow is not installed.
        FileNotFoundError: there is no such file.
        FormatError: a file is damaged, or lacks a column.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        names: Sequence[str] | None = None,
        allow: Paths = (),
    ) -> None:
        require_pyarrow()
        several = not isinstance(path, str | os.PathLike)
        self.source = ", ".join(map(str, path)) if several else str(path)  # type: ignore[arg-type]
        files = [Path(each) for each in path] if several else []  # type: ignore[union-attr]
        with reading(self.source, "Parquet or Arrow files"):
            if not several:
                self._inside, files = _find_files(Path(path), allow)  # type: ignore[arg-type]
            else:
                self._inside = Enclosure(files[0].parent, allow)
            self._files = [_open_rows(file) for file in files]
            self._index(image_column, label_column, names)

    def _index(self, image_column: str | None, label_column: str | None, names: Sequence[str] | None) -> None:
        self.image_column = image_column or _find_column(self._files[0], IMAGE_COLUMNS, "image_column")
        self.label_column = label_column or _find_column(self._files[0], LABEL_COLUMNS, "label_column")
        keys: list[Keys] = []
        groups: list[tuple[int, int, int]] = []  # file, group, rows
        for number, rows in enumerate(self._files):
            with reading(rows.path, f"a file with a readable column {self.label_column!r}"):
                self._need_columns(rows)
                for group, column in enumerate(rows.columns(self.label_column)):
                    groups.append((number, group, len(column)))
                    keys.append(label_values(column, self.label_column, rows.path))
                rows.locate(self.image_column)
        table = np.array(groups, dtype=np.int64).reshape(-1, 3)
        self._groups = table[:, :2]
        self._starts = np.concatenate([[0], np.cumsum(table[:, 2])])
        if not self._starts[-1]:
            raise FormatError("there is not one row", path=self.source)
        joined = _joined(keys, self.source)
        refuse_no_identity(joined, self.source)
        self.labels, self.identities = contiguous_labels(joined)
        self._name_classes(names or _class_label_names(self._files[0].schema, self.label_column))

    @override
    def read(self, index: int) -> bytes:
        group, row = self._place(self._check_index(index))
        number, inside = (int(value) for value in self._groups[group])
        rows = self._files[number]
        with reading(rows.path, f"readable in row {row} of group {inside}"):
            value = rows.value(self.image_column, inside, row)
            if isinstance(value, dict):
                data, path = value.get("bytes"), value.get("path")
                value = self._file_at(path, rows.path, row, inside) if data is None and path else data
        if not isinstance(value, bytes) or not value:
            raise FormatError(
                f"row {row} of group {inside} holds no image in column {self.image_column!r}", path=rows.path
            )
        return value

    @override
    def locate(self, index: int) -> str:
        group, row = self._place(index)
        number, inside = (int(value) for value in self._groups[group])
        return f"{self._files[number].path}, row {row} of group {inside}"

    def _file_at(self, path: str, table: Path, row: int, group: int) -> bytes:
        """The image that a row names, beside its file or in the folder of the data."""
        try:
            return read_image_file(path, inside=Enclosure(table.parent, self._inside.folders))
        except FormatError as error:
            raise FormatError(f"named in row {row} of group {group} of {table}: {error}") from error

    def _place(self, index: int) -> tuple[int, int]:
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        return group, index - int(self._starts[group])

    def _need_columns(self, rows: Rows) -> None:
        for name in (self.image_column, self.label_column):
            if rows.schema.names.count(name) != 1:
                raise FormatError(f"there is no column {name!r} among {rows.schema.names}", path=rows.path)

    def _name_classes(self, names: Sequence[str] | None) -> None:
        """Names of a ClassLabel, in the order of their numbers, which the labels follow."""
        numbered = self.identities.dtype.kind == "i"
        if names is None or not numbered:
            return
        if self.identities[0] < 0:
            raise FormatError(f"column {self.label_column!r} holds -1: these images have no class", path=self.source)
        if self.identities[-1] < len(names):
            self.identities = text_array([names[number] for number in self.identities.tolist()])


def require_pyarrow() -> None:
    """Sees that pyarrow is there.

    Raises:
        MissingLibraryError: if it is not.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise missing_library("pyarrow", "Reading and writing parquet and Arrow files") from error


def label_values(column: Any, name: str, path: str | os.PathLike[str]) -> Keys:
    """The labels of a validated column: whole numbers, or text.

    Raises:
        FormatError: the column is of another kind, or has empty cells.
    """
    import pyarrow as pa

    if column.null_count:
        raise FormatError(f"column {name!r} has {column.null_count} empty cells", path=path)
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [_chunk_values(chunk) for chunk in chunks]
    if any(part is None for part in parts):
        raise FormatError(f"column {name!r} holds {column.type}, not whole numbers or text", path=path)
    return _joined([part for part in parts if part is not None], path)


def _chunk_values(chunk: Any) -> Keys | None:
    import pyarrow as pa

    if pa.types.is_dictionary(chunk.type):
        values = _chunk_values(chunk.dictionary)
        if values is None:
            return None
        places = chunk.indices.to_numpy(zero_copy_only=False)
        return [values[place] for place in places.tolist()] if isinstance(values, list) else values[places]
    if pa.types.is_integer(chunk.type):
        return np.asarray(chunk.cast(pa.int64()).to_numpy(zero_copy_only=False), dtype=np.int64)
    if pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type) or _is_view(chunk.type):
        texts: list[str] = chunk.to_pylist()
        return texts
    return None


def _is_view(kind: Any) -> bool:
    import pyarrow as pa

    return hasattr(pa.types, "is_string_view") and bool(pa.types.is_string_view(kind))


def _joined(parts: list[Keys], path: str | os.PathLike[str]) -> Keys:
    filled = [part for part in parts if len(part)]
    numbers = [part for part in filled if not isinstance(part, list)]
    if not filled:
        return np.zeros(0, np.int64)
    if len(numbers) == len(filled):
        return np.concatenate(numbers)
    if numbers:
        raise FormatError("some labels are numbers and some are text", path=path)
    return [text for part in filled for text in part]


def _find_column(rows: Rows, usual: tuple[str, ...], argument: str) -> str:
    names = rows.schema.names
    for name in usual:
        if name in names:
            return name
    raise FormatError(f"none of its columns {names} has a usual name; give {argument}", path=rows.path)


def _find_files(path: Path, allow: Paths) -> tuple[Enclosure, list[Path]]:
    if is_pattern(path):
        files = [Path(file) for file in files_of(str(path), allow)]
        if not files:
            raise FileNotFoundError(f"no file fits {path}")
        return Enclosure(os.path.commonpath([file.parent for file in files]), allow), files
    if not path.exists():
        raise nothing_at(path)
    if not path.is_dir():
        return Enclosure(path.parent, allow), [path]
    inside = Enclosure(path, allow)
    names = list(files_below(inside, "", _SUFFIXES))
    found = [Path(inside.root) / name for name in names]
    words = f"give a pattern, such as {path / 'train-*.parquet'}, or data=huggingface data.source.options.split=SPLIT"
    refuse_several_splits((name.replace(os.sep, "/") for name in names), path, words)
    refuse_missing_shards(names, path)
    for file in found:
        inside.real(str(file.relative_to(inside.root)))
    if not found:
        raise FormatError(f"the folder holds no file that ends in {', '.join(_SUFFIXES)}", path=path)
    return inside, found


def _open_rows(path: Path) -> Rows:
    is_arrow = _SUFFIXES.get(path.suffix.lower()) == "arrow"
    with reading(path, f"a whole {'Arrow' if is_arrow else 'parquet'} file"):
        return ArrowRows(path) if is_arrow else ParquetRows(path)


def _class_label_names(schema: Any, column: str) -> list[str] | None:
    """Names of the classes, where ``datasets`` stored them with the schema."""
    raw = (schema.metadata or {}).get(b"huggingface")
    if raw is None:
        return None
    try:
        names = json.loads(raw)["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
