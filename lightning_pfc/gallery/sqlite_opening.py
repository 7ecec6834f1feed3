"""Opening a gallery's file: to read and write, or to read alone where nothing can be written."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import NamedTuple

from lightning_pfc.gallery.errors import GalleryError, NotAGalleryError
from lightning_pfc.gallery.sqlite_header import check_header
from lightning_pfc.gallery.sqlite_schema import VERSION, WAIT_MS, explained

# Committed means on the disk; deleted means overwritten. Both are settings of a connection, not of the file.
_WRITTEN = ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON", "foreign_keys = ON")
_ANY = ("trusted_schema = OFF", "cell_size_check = ON", f"busy_timeout = {WAIT_MS}")
_UNWRITTEN = (*_ANY, "query_only = ON", "temp_store = MEMORY")
_LOGS = ("-wal", "-journal")  # what was committed may be in there alone


class Opened(NamedTuple):
    """A connection, and whether it can write.

    Attributes:
        connection: to the file.
        writes: whether others are kept from reading a change by halves; else the reader has to look for changes.
    """

    connection: sqlite3.Connection
    writes: bool


def open_database(path: Path, *, for_reading: bool = False) -> Opened:
    """The database of a gallery that exists.

    Args:
        path: of the file.
        for_reading: do without writing where nothing can be written. Readers of SQLite's log write too: they make a
            small file in which they tell others what they read.

    Raises:
        NotAGalleryError: for something else, a damaged file or a newer version.
        GalleryError: where nothing can be written.
    """
    with explained(path):
        check_header(path)
        try:
            return Opened(_connected(path), True)
        except sqlite3.OperationalError as error:
            if not for_reading or _waits(error):
                raise
            return Opened(_unwritten(path, error), False)


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=WAIT_MS / 1000, isolation_level=None, check_same_thread=False)
    return _checked(path, connection, (*_WRITTEN, *_ANY))


def _unwritten(path: Path, error: sqlite3.OperationalError) -> sqlite3.Connection:
    """A connection that makes no file: without any lock where there is no log, or with a lock for itself alone."""
    if not any(_has_bytes(path.with_name(path.name + log)) for log in _LOGS):
        return _checked(path, _by_address(path, "mode=ro&immutable=1"), _UNWRITTEN)
    try:
        return _checked(path, _by_address(path, "mode=rw"), ("locking_mode = EXCLUSIVE", *_UNWRITTEN))
    except sqlite3.OperationalError as again:
        if _waits(again):
            raise
        raise GalleryError(
            f"{path.parent} was not closed when its process ended, and what is in the log beside it cannot be read "
            f"where nothing can be written ({error}): copy the folder to where it can, and use the copy."
        ) from again


def _by_address(path: Path, words: str) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?{words}"
    return sqlite3.connect(address, uri=True, timeout=WAIT_MS / 1000, isolation_level=None, check_same_thread=False)


def _checked(path: Path, connection: sqlite3.Connection, settings: tuple[str, ...]) -> sqlite3.Connection:
    """The connection with its settings, to a file of this version."""
    try:
        for setting in settings:
            connection.execute(f"PRAGMA {setting}")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise NotAGalleryError(
                f"{path.parent} is a gallery of version {version}, and this is for version {VERSION}: install a "
                "newer lightning-pfc."
            )
    except BaseException:
        connection.close()
        raise
    return connection


def _waits(error: sqlite3.OperationalError) -> bool:
    return "locked" in str(error) or "busy" in str(error)


def _has_bytes(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.stat().st_size > 0
    return False
