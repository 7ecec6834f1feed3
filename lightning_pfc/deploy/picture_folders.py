"""Pictures to be used with a model: a data set in any format, or a folder without identities."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from typing_extensions import override

from lightning_pfc.data.entries import files_below, folders_in, is_hidden
from lightning_pfc.data.errors import reading
from lightning_pfc.data.formats.base import EncodedImages
from lightning_pfc.data.formats.folder import IMAGE_SUFFIXES, read_image_file
from lightning_pfc.data.formats.patterns import Paths
from lightning_pfc.data.formats.readers import guess_format, open_images
from lightning_pfc.data.formats.texts import Texts
from lightning_pfc.storage.enclosure import Enclosure


class LoosePictures(EncodedImages):
    """Pictures directly in a folder, of nobody in particular: one class for all."""

    def __init__(self, root: str | os.PathLike[str], *, allow: Paths = ()) -> None:
        self.source = str(root)
        self._inside = Enclosure(root, allow)
        with reading(root, "a folder of pictures"):
            paths = list(files_below(self._inside, "", IMAGE_SUFFIXES))
        if not paths:
            raise FileNotFoundError(f"no picture lies below {root}")
        self._paths = Texts(paths)
        self.labels = np.zeros(len(paths), np.int64)
        self.identities = np.asarray([""])

    @override
    def read(self, index: int) -> bytes:
        return read_image_file(self._paths[self._check_index(index)], inside=self._inside)

    @override
    def locate(self, index: int) -> str:
        return os.path.join(self.source, self._paths[index])


def open_pictures(source: str | os.PathLike[str], format: str | None = None, *, allow: Paths = ()) -> EncodedImages:
    """A data set; of a folder with pictures directly in it (and perhaps folders), those all, without identities.

    Raises:
        FileNotFoundError: it is not there, or holds no picture.
        FormatError, ValueError: as :func:`~lightning_pfc.data.formats.open_images`.
    """
    if format is None and guess_format(source) == "folder" and not _has_identities(Path(source), allow):
        return LoosePictures(source, allow=allow)
    return open_images(source, format, allow=allow)


def _has_identities(root: Path, allow: Paths) -> bool:
    inside = Enclosure(root, allow)
    with reading(root, "a folder of pictures"):
        loose = any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in os.listdir(root) if not is_hidden(name))
        return not loose and bool(folders_in(inside))
