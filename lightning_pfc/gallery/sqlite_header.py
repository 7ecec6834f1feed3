"""Whether a file is a gallery's, by its first bytes: SQLite writes into whatever database it opens."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lightning_pfc.gallery.errors import NotAGalleryError

APPLICATION_ID = 0x50464347  # "PFCG", in the file's header: another program's database is told from ours
_MAGIC, _HEADER, _OWNER = b"SQLite format 3\0", 100, slice(68, 72)


def check_header(path: Path) -> None:
    """Refuse what is no gallery's file, without changing anything.

    Raises:
        NotAGalleryError: then.
        OSError: it cannot be read.
    """
    if path.parent.is_file():
        raise NotAGalleryError(f"{path.parent} is a file; a gallery is the folder that {path.name} lies in.")
    if not os.path.lexists(path):
        raise NotAGalleryError(
            f"{path.parent} is no gallery: {path.name} is not there; make one with `pfc-gallery build`."
        )
    if not stat.S_ISREG(os.lstat(path).st_mode):  # a link might lead anywhere, and a pipe is waited for
        raise NotAGalleryError(f"{path} is no ordinary file, so no gallery; name another folder.")
    with path.open("rb") as file:
        header = file.read(_HEADER)
    if len(header) < _HEADER or not header.startswith(_MAGIC):
        raise NotAGalleryError(
            f"{path} is no gallery, or is damaged: no database begins like that; restore it from a backup "
            "(`pfc-gallery export`), or name another folder."
        )
    if int.from_bytes(header[_OWNER], "big") != APPLICATION_ID:
        raise NotAGalleryError(f"{path} is a database of another program, not a gallery; name another folder.")
