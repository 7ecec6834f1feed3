"""Opening a data set whose format its path gives away."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_pfc.data.entries import is_hidden
from lightning_pfc.data.formats.base import EncodedImages
from lightning_pfc.data.formats.folder import FolderImages
from lightning_pfc.data.formats.huggingface import HuggingFaceImages
from lightning_pfc.data.formats.huggingface_local import is_saved
from lightning_pfc.data.formats.lists import ListImages
from lightning_pfc.data.formats.misplaced import ARCHIVES
from lightning_pfc.data.formats.parquet import ParquetImages
from lightning_pfc.data.formats.patterns import Paths, is_pattern, nothing_at
from lightning_pfc.data.formats.recordio_images import RecordIOImages
from lightning_pfc.data.formats.webdataset import WebDatasetImages

READERS: dict[str, Callable[..., EncodedImages]] = {
    "recordio": RecordIOImages,
    "folder": FolderImages,
    "list": ListImages,
    "parquet": ParquetImages,
    "webdataset": WebDatasetImages,
    "huggingface": HuggingFaceImages,
}
_BY_SUFFIX = {
    ".rec": "recordio",
    ".lst": "list",
    ".tsv": "list",
    ".csv": "list",
    ".txt": "list",
    ".parquet": "parquet",
    ".arrow": "parquet",
    ".feather": "parquet",
    ".ipc": "parquet",
    ".tar": "webdataset",
}
_TAKE_PATTERNS = ("parquet", "webdataset")


def guess_format(path: str | os.PathLike[str]) -> str:
    """The format that a path looks like: one of ``READERS``.

    Raises:
        FileNotFoundError: nothing lies at ``path``.
        ValueError: it could be anything.
    """
    text = os.fspath(path)
    suffix = os.path.splitext(text)[1].lower()
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    folder = Path(text)
    if not folder.exists():
        raise nothing_at(text)
    if folder.is_dir():
        if (folder / "train.rec").is_file():
            return "recordio"
        if is_saved(folder):
            return "huggingface"
        names = {os.path.splitext(name)[1].lower() for name in os.listdir(folder) if not is_hidden(name)}
        if ".tar" in names:
            return "webdataset"
        below = any(not is_hidden(path.name) for path in folder.glob("data/*.parquet"))
        if names & {".parquet", ".arrow", ".feather", ".ipc"} or below:
            return "parquet"
        return "folder"
    if suffix in ARCHIVES:
        raise ValueError(f"path is {text!r}, an archive: unpack it, and give the folder or the .tar itself.")
    raise ValueError(f"path is {text!r}, whose format its name does not tell; give format, one of {sorted(READERS)}.")


def open_images(
    path: str | os.PathLike[str], format: str | None = None, *, allow: Paths = (), **options: Any
) -> EncodedImages:
    """Opens labelled images of any format.

    Args:
        path: a file or folder; of shards (``webdataset``, ``parquet``) also a pattern, for ``huggingface`` a name on
            the hub.
        format: one of ``recordio``, ``folder``, ``list``, ``parquet``, ``webdataset``, ``huggingface``; by default
            what the path looks like.
        allow: folders besides the data's own that links and paths in it may lead into.
        **options: of the class that reads the format, such as ``ListImages``.

    Raises:
        ValueError: ``format`` has another value, or the path does not tell it.
        FileNotFoundError: nothing lies at ``path``.
        FormatError: the file does not hold what its format promises.
        MissingLibraryError: the format needs a library that is not installed.
    """
    chosen = format or guess_format(path)
    if chosen not in READERS:
        raise ValueError(f"format is {chosen!r}; use one of {sorted(READERS)}.")
    takes_it = chosen == "huggingface" or not isinstance(path, str | os.PathLike)  # a name of the hub, several files
    if not (takes_it or os.path.lexists(path) or (chosen in _TAKE_PATTERNS and is_pattern(path))):
        raise nothing_at(path)
    return READERS[chosen](path, allow=allow, **options)
