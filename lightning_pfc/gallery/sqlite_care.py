"""Looking after a gallery's file: is it sound, can it be smaller, where is its copy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lightning_pfc.gallery.errors import GalleryError, NotAGalleryError
from lightning_pfc.gallery.sqlite_file import SqliteFile
from lightning_pfc.gallery.sqlite_schema import DATABASE, explained, new_file, new_folder, sync_folder
from lightning_pfc.storage.makers import hidden_path, sweep_parts

_BATCH = 1000


def verify(file: SqliteFile) -> list[str]:
    """See :meth:`~lightning_pfc.gallery.store.Store.verify`."""
    with file.reading():
        found = [row[0] for row in file.execute("PRAGMA integrity_check") if row[0] != "ok"]
        found += [f"{row[0]}: a row points at nothing in {row[2]}" for row in file.execute("PRAGMA foreign_key_check")]
    return found + list(_identity_faults(file)) + list(_vector_faults(file))


def _identity_faults(file: SqliteFile) -> Iterator[str]:
    last = 0
    while True:
        with file.reading():
            rows = file.execute(
                "SELECT id, name, metadata FROM identities WHERE id > ? ORDER BY id LIMIT ?", (last, _BATCH)
            ).fetchall()
        if not rows:
            return
        last = rows[-1][0]
        for number, name, metadata in rows:
            if not isinstance(name, str):
                yield f"identity {number} has a name that is no text"
            try:
                file.as_metadata(metadata, str(name))
            except NotAGalleryError:
                yield f"identity {number} ({name}) has metadata that are no JSON"


def _vector_faults(file: SqliteFile) -> Iterator[str]:
    last, size = 0, 4 * file.model.width
    while True:
        with file.reading():
            rows = file.execute(
                "SELECT pictures.id, vectors.vector FROM pictures LEFT JOIN vectors ON vectors.id = ? + pictures.id "
                "WHERE pictures.id > ? ORDER BY pictures.id LIMIT ?",
                (file.first_key(), last, _BATCH),
            ).fetchall()
        if not rows:
            return
        last = rows[-1][0]
        for picture, blob in rows:
            if blob is None:
                yield f"picture {picture} has no vector"
            elif len(blob) != size:
                yield f"picture {picture} has a vector of {len(blob)} bytes, not {size}"
            elif not abs(float(np.linalg.norm(np.frombuffer(blob, dtype="<f4"))) - 1.0) < 1e-3:
                yield f"picture {picture} has a vector that is not of length one"


def compact(file: SqliteFile) -> None:
    """See :meth:`~lightning_pfc.gallery.store.Store.compact`."""
    with file.writing():
        # indexes that follow begin anew, so they need not be told any more what was removed
        file.execute("DELETE FROM removals")
        file.set("generation", int(file.settings()["generation"]) + 1)
    with file.reading():
        file.execute("VACUUM")
    file.empty_log()


def backup(file: SqliteFile, folder: Path) -> None:
    """See :meth:`~lightning_pfc.gallery.store.Store.backup`."""
    path = folder / DATABASE
    if path.exists():
        raise GalleryError(f"{folder} is a gallery already; name a new folder for the copy.")
    sweep_parts(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise GalleryError(f"{folder} holds other files; name a new folder for the copy.")
    with explained(path), new_folder(folder):
        partial = hidden_path(path)
        try:
            new_file(partial)
            file.copy_to(partial, path)
            descriptor = os.open(partial, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.link(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        sync_folder(folder)
