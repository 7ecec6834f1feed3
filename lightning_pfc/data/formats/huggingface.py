"""Data sets of Hugging Face ``datasets``: saved on disk, in a local folder, or on the hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from lightning_pfc.checked import checked
from lightning_pfc.data.errors import FormatError, missing_library, reading
from lightning_pfc.data.formats.arrow import ArrowRows
from lightning_pfc.data.formats.base import EncodedImages, contiguous_labels
from lightning_pfc.data.formats.huggingface_local import (
    Local,
    check_card,
    choose_split,
    is_saved,
    read_saved,
    read_tables,
)
from lightning_pfc.data.formats.parquet import ParquetImages, require_pyarrow
from lightning_pfc.data.formats.patterns import Paths
from lightning_pfc.storage.enclosure import Enclosure, as_paths


@checked
class HuggingFaceImages(EncodedImages):
    """A split of a data set with an image and a label column.

    What ``save_to_disk`` wrote, and local folders of Parquet or Arrow files, are read as they are. For anything else
    the library ``datasets`` is asked, which keeps a copy in its cache; a name on the hub is downloaded by it.

    Args:
        path: a folder written by ``save_to_disk``, or anything ``datasets.load_dataset`` takes (a local folder, a
            name on the hub).
        split: which split; needed only if there are several.
        image_column, label_column: by default the first column of type ``Image``, and of type ``ClassLabel`` (or called
            ``label``).
        name: configuration of a data set that has several.
        allow: further folders that paths and links in it may lead into.
        **options: further arguments of ``datasets.load_dataset``, such as ``data_files`` or ``revision``.

    Raises:
        MissingLibraryError: pyarrow is not installed, or datasets where it is asked.
        FormatError: the data set cannot be loaded, has no such split or column, has empty labels, or names files
            outside its folder.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        split: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        name: str | None = None,
        allow: Paths = (),
        **options: Any,
    ) -> None:
        require_pyarrow()
        self.source = str(path) + (f" [{split}]" if split else "")
        more = as_paths(allow)
        local = _find(Path(path), split, name, options, more)
        self.image_column = image_column or _column(local, "Image", ("image", "img"), "image_column", self.source)
        self.label_column = label_column or _column(
            local, "ClassLabel", ("label", "identity", "id"), "label_column", self.source
        )
        self._table = ParquetImages(
            local.files,
            image_column=self.image_column,
            label_column=self.label_column,
            names=_names(local.features.get(self.label_column or "")),
            allow=more,
        )
        self._order = _order(local.order, len(self._table))
        self.labels, self.identities = self._table.labels, self._table.identities
        if self._order is not None:
            self.labels, kept = contiguous_labels(self.labels[self._order])
            self.identities = self.identities[kept]

    @override
    def read(self, index: int) -> bytes:
        index = self._check_index(index)
        return self._table.read(index if self._order is None else int(self._order[index]))

    @override
    def locate(self, index: int) -> str:
        return f"{self.source}, row {index}"


def _find(path: Path, split: str | None, name: str | None, options: dict[str, Any], allow: list[Any]) -> Local:
    """The files of a split. To ``allow`` the folder is added, and the library's cache where it was used."""
    if path.is_dir() and not options:
        inside = Enclosure(path, allow)
        allow.append(path)
        if is_saved(path):
            return read_saved(path, split, inside)
        if name is None and (found := read_tables(path, split, inside)) is not None:
            return found
        check_card(path, inside)
    datasets = _datasets()
    allow += [datasets.config.HF_CACHE_HOME, datasets.config.HF_DATASETS_CACHE]
    try:
        if path.is_dir():
            options = {"download_config": datasets.DownloadConfig(local_files_only=True), **options}
        loaded = datasets.load_dataset(os.fspath(path), name, **options)
    except Exception as error:  # the library and the hub raise errors of many kinds
        raise FormatError(f"datasets cannot load it: {type(error).__name__}: {error}", path=path) from error
    table = loaded[choose_split(list(loaded), split, path)] if isinstance(loaded, dict) else loaded
    files = [Path(entry["filename"]) for entry in table.cache_files]
    if not files:
        raise FormatError("datasets holds it in memory; write it with save_to_disk and give that folder", path=path)
    return Local(files, table.features.to_dict(), [])


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise missing_library("datasets", "Reading a Hugging Face data set") from error
    return datasets


def _column(local: Local, kind: str, usual: tuple[str, ...], argument: str, source: str) -> str | None:
    """The first column of a type, or with a usual name; None where the files must tell."""
    if not local.features:
        return None
    of_type = [name for name, feature in local.features.items() if _is(feature, kind)]
    named = [name for name in usual if name in local.features]
    if of_type or named:
        return str([*of_type, *named][0])
    raise FormatError(
        f"none of the columns {list(local.features)} is a {kind} or has a usual name; give {argument}", path=source
    )


def _is(feature: Any, kind: str) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == kind


def _names(feature: Any) -> list[str] | None:
    names = feature.get("names") if _is(feature, "ClassLabel") else None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _order(files: list[Path], rows: int) -> npt.NDArray[np.int64] | None:
    """Which rows the data set has, where it has not all in order."""
    if not files:
        return None
    with reading(files[0], "an index of rows"):
        parts = [column for file in files for column in ArrowRows(file).columns("indices")]
        order = np.concatenate([part.to_numpy(zero_copy_only=False) for part in parts]).astype(np.int64)
    if not len(order) or order.min() < 0 or order.max() >= rows:
        raise FormatError(f"an index of rows goes beyond the {rows} there are", path=files[0])
    return order
