"""A folder with one sub-folder of images per identity."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from typing_extensions import override

from lightning_pfc.data.errors import FormatError
from lightning_pfc.data.formats.base import EncodedImages, contiguous_labels

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif", ".jfif", ".img")
)
MAX_FILE = 64 << 20  # bytes


def read_image_file(path: str | os.PathLike[str], *, max_bytes: int = MAX_FILE) -> bytes:
    """The bytes of a file.

    Raises:
        FormatError: the file is missing, is not readable, or is larger than ``max_bytes``.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise FormatError(f"the file has {size} bytes, more than max_bytes={max_bytes}", path=path, offset=0)
            return file.read()
    except OSError as error:
        raise FormatError(f"the image cannot be read: {error.strerror or error}", path=path) from error


class FolderImages(EncodedImages):
    """A folder of folders: each one directly under ``root`` that holds an image, at any depth, is a class.

    Args:
        root: the folder.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
        FormatError: there is no image in it.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.source = str(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"no such folder: {self.root}")
        identities: list[str] = []
        paths: list[str] = []
        for entry in sorted(os.scandir(self.root), key=lambda entry: entry.name):
            if entry.is_dir():
                found = _images_under(entry.path, entry.name)
                identities += [entry.name] * len(found)
                paths += found
        if not paths:
            raise FormatError("no folder in it holds an image; expected ROOT/IDENTITY/image.jpg", path=root)
        # Bytes in one array instead of millions of strings: workers share it, and forking does not copy it.
        self._paths = np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)
        self.labels, self.identities = contiguous_labels(identities)

    @override
    def read(self, index: int) -> bytes:
        return read_image_file(self._path(self._check_index(index)))

    @override
    def locate(self, index: int) -> str:
        return self._path(index)

    @override
    def name(self, index: int) -> str:
        return os.path.splitext(os.fsdecode(bytes(self._paths[index])))[0].replace(os.sep, "/")

    def _path(self, index: int) -> str:
        return os.path.join(self.source, os.fsdecode(bytes(self._paths[index])))


def _images_under(folder: str, relative: str) -> list[str]:
    found: list[str] = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        inside = os.path.join(relative, entry.name)
        if entry.is_dir(follow_symlinks=True):
            found += _images_under(entry.path, inside)
        elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
            found.append(inside)
    return found
