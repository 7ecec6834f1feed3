"""The tables of a gallery in SQLite, how a file of them is made, and its errors in words."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lightning_pfc.gallery.errors import GalleryBusyError, GalleryError, GalleryFullError, NotAGalleryError
from lightning_pfc.gallery.sqlite_header import APPLICATION_ID, check_header
from lightning_pfc.storage.makers import hidden_path, sweep_parts

DATABASE = "gallery.sqlite3"
VERSION = 1
WAIT_MS = 10_000  # for a writer that is at work
_LITTLE_ROOM = 1 << 20  # bytes; a disk with less is called full where SQLite says no more than that an error came

_TABLES = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE models (
    id INTEGER PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE, width INTEGER NOT NULL CHECK (width > 0), source TEXT NOT NULL
);
-- AUTOINCREMENT: a number is never used again, so an index that knows the last one knows what is new
CREATE TABLE identities (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, metadata TEXT NOT NULL DEFAULT '{}'
);
CREATE TABLE pictures (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    identity INTEGER NOT NULL REFERENCES identities (id) ON DELETE CASCADE,
    source TEXT NOT NULL DEFAULT '',
    digest TEXT NOT NULL,
    UNIQUE (identity, digest)
);
-- id is (model << 40) | picture: the vectors of one model lie together, in the order of their pictures, so that the
-- next model's can be made while these serve
CREATE TABLE vectors (id INTEGER PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE previews (
    picture INTEGER PRIMARY KEY REFERENCES pictures (id) ON DELETE CASCADE, image BLOB NOT NULL
);
-- what an index in another process has to forget
CREATE TABLE removals (id INTEGER PRIMARY KEY AUTOINCREMENT, picture INTEGER NOT NULL);
-- what a request that is sent twice was answered the first time
CREATE TABLE answers (
    key TEXT PRIMARY KEY, request TEXT NOT NULL, answer TEXT NOT NULL, at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX answers_by_time ON answers (at);
CREATE TRIGGER picture_removed AFTER DELETE ON pictures BEGIN
    DELETE FROM vectors WHERE id IN (SELECT (models.id << 40) | old.id FROM models);
    INSERT INTO removals (picture) VALUES (old.id);
END;
"""

_PAGE = 16384
"""Bytes of a page: one of 4096 has room for a single vector of 512 numbers, and half of it stays empty."""


def create_database(path: Path, first: Iterable[tuple[str, tuple[Any, ...]]] = ()) -> None:
    """A new gallery's database: the file is there with all its tables and first rows, or not at all.

    Args:
        path: of the file.
        first: statements with their values that put the first rows in.

    Raises:
        GalleryError: if the file is there already, or cannot be made.
    """
    if os.path.lexists(path):
        raise _exists(path)
    with explained(path), new_folder(path.parent):
        sweep_parts(path.parent)
        partial = hidden_path(path)
        try:
            new_file(partial)
            connection = sqlite3.connect(partial, isolation_level=None)
            connection.execute(f"PRAGMA page_size = {_PAGE}")
            with contextlib.closing(connection), transaction(connection):
                for statement in _statements(_TABLES):
                    connection.execute(statement)
                for statement, values in first:
                    connection.execute(statement, values)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {VERSION}")
            try:
                os.link(partial, path)  # unlike a rename it never takes the place of a gallery made meanwhile
            except FileExistsError as error:
                raise _exists(path) from error
        finally:
            partial.unlink(missing_ok=True)
        sync_folder(path.parent)


def _exists(path: Path) -> GalleryError:
    try:
        check_header(path)
    except NotAGalleryError as error:
        return error
    return GalleryError(
        f"{path.parent} is a gallery already; add to it with `pfc-gallery add`, or name another folder."
    )


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Everything in the block, or nothing of it; on the disk when it ends."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns what SQLite and the system raise into errors of a gallery."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise _operational(path, str(error)) from error
    except sqlite3.DatabaseError as error:
        raise _damaged(path, str(error)) from error
    except UnicodeEncodeError as error:
        raise GalleryError(
            f"{str(error.object)[:80]!r} is no text that can be kept: some of its bytes are not UTF-8; rename it."
        ) from error
    except OSError as error:
        raise GalleryError(f"{path.parent}: {error.strerror or error}; mend that, or name another folder.") from error


def _operational(path: Path, text: str) -> GalleryError:
    """What SQLite could not do, in a gallery's words."""
    if "locked" in text or "busy" in text:
        return GalleryBusyError(
            f"{path.parent} is being written by another process; it was waited for {WAIT_MS // 1000} s: try again."
        )
    if "full" in text or ("I/O" in text and _room(path.parent) < _LITTLE_ROOM):
        return GalleryFullError(f"{path.parent}: the disk is full; nothing was changed. Make room, then try again.")
    if ("unable to open" in text or "readonly" in text) and not (
        os.access(path.parent, os.W_OK) and os.access(path, os.W_OK)
    ):
        return GalleryError(
            f"{path.parent} cannot be written here, and can be searched, listed, verified and exported only: mend its "
            "mode or its owner, or change a copy of it."
        )
    if "no such table" in text or "no such column" in text:
        return _damaged(path, text)
    return GalleryError(f"{path}: {text}; see whether the disk is sound, within its quota, and yours to write to.")


def _damaged(path: Path, text: str) -> NotAGalleryError:
    return NotAGalleryError(
        f"{path} is no gallery, or is damaged ({text}); restore it from a backup (`pfc-gallery export`)."
    )


def _room(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return _LITTLE_ROOM


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """A folder for the block; if it was not there before and the block raises, it is gone unless something is in it."""
    there = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if not there:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def new_file(path: Path) -> None:
    """An empty file that its owner alone may read: vectors and previews of people are biometric data.

    SQLite gives the log beside a file the file's own mode; a group that is let in later stays let in.
    """
    path.unlink(missing_ok=True)  # of a dead process with the number of this one
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder last, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _statements(script: str) -> Iterator[str]:
    text = ""
    for line in script.splitlines(keepends=True):
        text += line
        if sqlite3.complete_statement(text):
            yield text
            text = ""
