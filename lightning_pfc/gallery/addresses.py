"""Galleries by their address: a folder, or a database of PostgreSQL."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_pfc.gallery.errors import GalleryError
from lightning_pfc.gallery.gallery import Gallery
from lightning_pfc.gallery.records import ModelRecord, Photos
from lightning_pfc.gallery.sqlite_schema import DATABASE

_POSTGRES = ("postgresql://", "postgres://")


def create_gallery(address: str, model: ModelRecord, pooling: str = "max", photos: Photos | None = None) -> Gallery:
    """A new, empty gallery.

    Raises:
        GalleryError: if there is one already, or it cannot be made.
    """
    _check_address(address)
    if address.startswith(_POSTGRES):
        from lightning_pfc.gallery.postgres_store import PostgresStore

        return Gallery(PostgresStore.create(address, model, pooling, photos))
    return Gallery.create(Path(address), model, pooling=pooling, photos=photos)


def open_gallery(address: str, *, for_reading: bool = False) -> Gallery:
    """A gallery that exists.

    Args:
        address: a folder, or ``postgresql://...``.
        for_reading: nothing is going to be changed, so a full disk and a folder that cannot be written will do.

    Raises:
        NotAGalleryError: if there is none.
    """
    _check_address(address)
    if address.startswith(_POSTGRES):
        from lightning_pfc.gallery.postgres_store import PostgresStore

        return Gallery(PostgresStore(address))
    return Gallery.open(Path(address), for_reading=for_reading)


def who_else_may_read(address: str) -> str | None:
    """Who may read a gallery's file beside its owner, by the file's mode; None: nobody, or a database knows.

    A gallery that earlier versions made has the mode that the shell's umask left it.
    """
    try:
        mode = None if address.startswith(_POSTGRES) else (Path(address) / DATABASE).stat().st_mode
    except OSError:
        return None
    if mode is None or os.name != "posix" or not mode & 0o044:
        return None
    return "every user of this machine" if mode & 0o004 else "its group"


def _check_address(address: str) -> None:
    if not address.strip():  # a variable of a shell that was never set; a path of no letters is the working folder
        raise GalleryError(f"gallery {address!r} is empty; give a folder, or postgresql://HOST/DATABASE.")
