"""A folder with one sub-folder of images per identity."""

from __future__ import annotations

import logging
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy.typing as npt
from typing_extensions import override

from lightning_pfc.checked import checked
from lightning_pfc.data.entries import files_below, folders_in
from lightning_pfc.data.errors import FormatError, reading
from lightning_pfc.data.formats.base import EncodedImages, contiguous_labels
from lightning_pfc.data.formats.misplaced import what_lies_in
from lightning_pfc.data.formats.patterns import Paths, nothing_at
from lightning_pfc.data.formats.texts import Texts
from lightning_pfc.data.parts import refuse_splits_as_identities
from lightning_pfc.storage.enclosure import Enclosure
from lightning_pfc.storage.regular import read_regular

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif", ".jfif", ".img")
)
MAX_FILE = 1 << 28  # bytes of an image
_log = logging.getLogger(__name__)


def read_image_file(
    path: str | os.PathLike[str], *, max_bytes: int = MAX_FILE, inside: Enclosure | None = None
) -> bytes:
    """The bytes of a file.

    Args:
        path: the file, relative to the root of ``inside`` if that is given.
        max_bytes: larger ones are refused.
        inside: the folders in which it must lie.

    Raises:
        FormatError: the file is missing, is no regular file, lies outside, is not readable, or is larger than
            ``max_bytes``.
    """
    try:
        return read_regular(path, max_bytes) if inside is None else inside.read(os.fspath(path), max_bytes)
    except OSError as error:
        where = path if inside is None else os.path.join(inside.root, path)
        raise FormatError(f"the image cannot be read: {error.strerror or error}", path=where) from error


@checked
class FolderImages(EncodedImages):
    """A folder of folders: each one directly under ``root`` that holds an image, at any depth, is a class.

    Hidden entries, and those that file managers leave behind (``__MACOSX``, ``@eaDir``, ``Thumbs.db``), are no data.
    Links are followed below ``root``, a class folder that is a link to another one included.

    Args:
        root: the folder.
        allow: further folders that links in it may lead into.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
        FormatError: there is no image in it, a link to a folder leads out of it, or its folders are splits (``train``,
            ``test``) that hold the identities.
    """

    def __init__(self, root: str | os.PathLike[str], *, allow: Paths = ()) -> None:
        self.root = Path(root)
        self.source = str(root)
        if not self.root.is_dir():
            raise nothing_at(root, "folder")
        self._inside = Enclosure(self.root, allow)
        identities: list[str] = []
        paths: list[str] = []
        with reading(root, "a folder of folders of images"):
            for name in folders_in(self._inside):
                found = list(files_below(self._inside, name, IMAGE_SUFFIXES))
                identities += [name] * len(found)
                paths += found
        if not paths:
            way_out = what_lies_in(self.root, IMAGE_SUFFIXES)
            raise FormatError(f"no folder in it holds an image; expected ROOT/IDENTITY/image.jpg{way_out}", path=root)
        refuse_splits_as_identities(sorted(set(identities)), paths, self.root)
        self._paths = Texts(paths)
        self.labels, self.identities = contiguous_labels(identities)
        _warn_of_twins(self.source, self.identities)

    @override
    def read(self, index: int) -> bytes:
        return read_image_file(self._paths[self._check_index(index)], inside=self._inside)

    @override
    def locate(self, index: int) -> str:
        return os.path.join(self.source, self._paths[index])

    @override
    def name(self, index: int) -> str:
        return os.path.splitext(self._paths[index])[0].replace(os.sep, "/")


def _warn_of_twins(source: str, names: npt.NDArray[Any]) -> None:
    """Say that two names differ in how Unicode writes accents alone: two identities, and perhaps one person."""
    seen: dict[str, str] = {}
    for name in names.tolist():
        if not name.isascii() and (other := seen.setdefault(unicodedata.normalize("NFC", name), name)) != name:
            _log.warning(
                "%s: %s and %s look alike (Unicode writes accents in two ways), and are two identities here. If it is "
                "one person, put the pictures into one folder.", source, ascii(other), ascii(name),
            )  # fmt: skip
            return
