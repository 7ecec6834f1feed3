"""Data sets of Hugging Face ``datasets``: saved on disk, in a local folder, or on the hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from lightning_pfc.data.errors import FormatError, missing_library
from lightning_pfc.data.formats.base import EncodedImages, contiguous_labels
from lightning_pfc.data.formats.folder import read_image_file


class HuggingFaceImages(EncodedImages):
    """A split of a data set with an image and a label column; images are not decoded by ``datasets``.

    Args:
        path: a folder written by ``save_to_disk``, or anything ``datasets.load_dataset`` takes (a local folder, a
            name on the hub).
        split: which split; needed only if there are several.
        image_column, label_column: by default the first column of type ``Image``, and of type ``ClassLabel`` (or called
            ``label``).
        name: configuration of a data set that has several.
        **options: further arguments of ``datasets.load_dataset``, such as ``data_files`` or ``revision``.

    Raises:
        MissingLibraryError: datasets is not installed.
        FormatError: the data set cannot be loaded, has no such split or column, or has empty labels.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        split: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        datasets = _datasets()
        self.source = str(path) + (f" [{split}]" if split else "")
        table = _one_split(_load(datasets, os.fspath(path), name, options), split, self.source)
        self.image_column = image_column or _column_of_type(table, datasets.Image, ("image", "img"), "image_column")
        self.label_column = label_column or _column_of_type(
            table, datasets.ClassLabel, ("label", "identity", "id"), "label_column"
        )
        for column in (self.image_column, self.label_column):
            if column not in table.column_names:
                raise FormatError(f"there is no column {column!r} among {table.column_names}", path=self.source)
        if isinstance(table.features[self.image_column], datasets.Image):
            table = table.cast_column(self.image_column, datasets.Image(decode=False))
        feature = table.features[self.label_column]
        keys = table.with_format("numpy", columns=[self.label_column])[self.label_column][:]
        self.labels, self.identities = contiguous_labels(_as_identities(keys, self.label_column, self.source))
        if isinstance(feature, datasets.ClassLabel):
            if self.identities[0] < 0:
                raise FormatError(
                    f"column {self.label_column!r} holds -1: these images have no class", path=self.source
                )
            self.identities = np.array([feature.names[number] for number in self.identities.tolist()])
        self._rows = table.select_columns([self.image_column])

    @override
    def read(self, index: int) -> bytes:
        index = self._check_index(index)
        value = self._rows[index][self.image_column]
        if isinstance(value, dict):
            data, path = value.get("bytes"), value.get("path")
            value = read_image_file(path) if data is None and path else data
        if not isinstance(value, bytes) or not value:
            raise FormatError(f"row {index} holds no image in column {self.image_column!r}", path=self.source)
        return value

    @override
    def locate(self, index: int) -> str:
        return f"{self.source}, row {index}"


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise missing_library("datasets", "Reading a Hugging Face data set") from error
    return datasets


def _load(datasets: Any, path: str, name: str | None, options: dict[str, Any]) -> Any:
    saved = Path(path)
    try:
        if (saved / "state.json").is_file() or (saved / "dataset_dict.json").is_file():
            return datasets.load_from_disk(path)
        return datasets.load_dataset(path, name, **options)
    except Exception as error:  # the library and the hub raise errors of many kinds
        raise FormatError(f"datasets cannot load it: {type(error).__name__}: {error}", path=path) from error


def _one_split(loaded: Any, split: str | None, source: str) -> Any:
    if not isinstance(loaded, dict):
        return loaded
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split not in loaded:
        raise FormatError(f"split is {split!r}; the data set has the splits {sorted(loaded)}", path=source)
    return loaded[split]


def _column_of_type(table: Any, kind: type, usual: tuple[str, ...], argument: str) -> str:
    of_type = [name for name, feature in table.features.items() if isinstance(feature, kind)]
    named = [name for name in usual if name in table.column_names]
    if of_type or named:
        return str([*of_type, *named][0])
    raise FormatError(
        f"none of the columns {table.column_names} is a {kind.__name__} or has a usual name; give {argument}"
    )


def _as_identities(values: Any, column: str, source: str) -> np.ndarray[Any, Any]:
    keys = np.asarray(values)
    if keys.dtype.kind in "iu":
        return keys.astype(np.int64)
    if keys.dtype.kind == "U" or all(isinstance(key, str) for key in keys.tolist()):
        return keys.astype(np.str_)
    raise FormatError(
        f"column {column!r} holds {keys.dtype}, not whole numbers or text, or has empty cells", path=source
    )
