"""The SQLite file of a gallery: one connection for all threads, its transactions, and how vectors lie in it."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_pfc.gallery.errors import GalleryBusyError, NotAGalleryError, OtherModelError
from lightning_pfc.gallery.names import POOLINGS
from lightning_pfc.gallery.records import ModelRecord, Vectors
from lightning_pfc.gallery.sqlite_opening import open_database
from lightning_pfc.gallery.sqlite_schema import WAIT_MS, explained, transaction

_MODEL_SHIFT = 40
_PATIENCE = 10.0  # seconds, for a process that reads while the log is to be emptied


class SqliteFile:
    """A gallery's file.

    Args:
        path: of the file.
        for_reading: nothing is going to be written, so a place where nothing can be written will do.

    Raises:
        NotAGalleryError: for something else, a damaged file or a newer version.
    """

    def __init__(self, path: Path, *, for_reading: bool = False) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._for_reading = for_reading
        self._before = _content(path)
        self._db, self._writes = open_database(path, for_reading=for_reading)
        self._place = _place(path)
        try:
            self.reload_model()
            self._check_settings()
        except (KeyError, ValueError, TypeError) as error:
            self.close()
            raise NotAGalleryError(
                f"{path} lacks its settings, or they are damaged; restore it from a backup (`pfc-gallery export`)."
            ) from error

    def close(self) -> None:
        """Let go of the file; the log beside it goes with it."""
        with self._lock:
            self._db.close()

    # --- transactions -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Everything in the block or nothing of it, on the disk at its end; a block within another belongs to it."""
        with self._lock, explained(self.path):
            if self._db.in_transaction:
                yield
                return
            with transaction(self._db):
                self.check_place()
                self.check_model()
                yield

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """No other thread in between, and errors that a user can read."""
        with self._lock, explained(self.path):
            yield
            if not self._writes:
                self._check_content()

    def execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """One statement, in a block of :meth:`reading` or :meth:`writing`."""
        return self._db.execute(statement, values)

    def insert(self, statement: str, *values: Any) -> int:
        """One insertion; returns the number of the row."""
        number = self._db.execute(statement, values).lastrowid
        assert number is not None
        return number

    def empty_log(self) -> None:
        """Overwrite deleted rows in the file itself, and cut the log, which still has them, to nothing.

        Raises:
            GalleryBusyError: if another process reads all the time; what was deleted is deleted all the same.
        """
        deadline = time.monotonic() + _PATIENCE
        while not self.emptied_log():
            if time.monotonic() > deadline:
                raise GalleryBusyError(
                    f"{self.path.parent}: done, but another process keeps the log with the deleted numbers open; "
                    "when it has ended, run `pfc-gallery compact`."
                )
            time.sleep(0.05)

    def emptied_log(self) -> bool:
        """Whether :meth:`empty_log` can be done now; waits for nobody, neither in this process nor in another."""
        if not self._writes:
            return False
        with self.reading():
            self._db.execute("PRAGMA busy_timeout = 0")
            try:
                return not self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            finally:
                self._db.execute(f"PRAGMA busy_timeout = {WAIT_MS}")

    def copy_to(self, path: Path, final: Path) -> None:
        """All of it as it is now into a new file, while others go on; errors name what it is going to be."""
        with self.reading(), explained(final), contextlib.closing(sqlite3.connect(path)) as other:
            self._db.backup(other)
            other.execute("PRAGMA journal_mode = DELETE")

    def bytes_on_disk(self) -> int:
        """Of the file and its log."""
        found = 0
        for file in self.path.parent.glob(self.path.name + "*"):
            with contextlib.suppress(FileNotFoundError):  # another process, the last one, has closed the log
                found += file.stat().st_size
        return found

    def check_place(self) -> None:
        """Notice that the file was taken away: it goes on to be written as long as it is open, and is gone then.

        Raises:
            NotAGalleryError: for a file that is not there any more, or another in its place.
        """
        if _place(self.path) != self._place:
            raise NotAGalleryError(
                f"{self.path} was taken away or replaced while it was open, and what is written now would be lost: "
                "put it back, or open the gallery again."
            )

    def _check_content(self) -> None:
        """Notice that others wrote while this connection, which has no lock, was reading.

        Raises:
            GalleryBusyError: then, since halves of two states may have been read.
        """
        if _content(self.path) != self._before:
            raise GalleryBusyError(
                f"{self.path.parent} was changed while it was read from where nothing can be written: try again."
            )

    # --- settings and models ------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, str]:
        """All settings by name."""
        with self.reading():
            return dict(self._db.execute("SELECT name, value FROM settings"))

    def set(self, name: str, value: str | int) -> None:
        """Change a setting, in a block of :meth:`writing`."""
        self._db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, str(value)))

    def reload_model(self) -> None:
        """Read again which model serves."""
        self.model_id = int(self.settings()["model"])
        self.model = self.model_record(self.model_id)

    def _check_settings(self) -> None:
        found = self.settings()
        int(found["generation"])
        if found["pooling"] not in POOLINGS:
            raise ValueError(found["pooling"])

    def model_record(self, number: int) -> ModelRecord:
        """A model by its number."""
        with self.reading():
            row = self._db.execute("SELECT sha256, width, source FROM models WHERE id = ?", (number,)).fetchone()
        return ModelRecord(*row)

    def check_model(self) -> None:
        """Notice that another process has moved the gallery to another model.

        Raises:
            OtherModelError: then, since vectors of this one are no longer welcome.
        """
        if int(self.settings()["model"]) != self.model_id:
            raise OtherModelError(
                f"{self.path.parent} was moved to another model meanwhile; open it again, with that model."
            )

    def as_metadata(self, text: str, name: str) -> dict[str, Any]:
        """What is remembered of an identity.

        Raises:
            NotAGalleryError: it is no JSON.
        """
        try:
            return dict(json.loads(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise NotAGalleryError(
                f"{self.path} is damaged: the metadata of {name!r} are no JSON; restore a backup."
            ) from error

    # --- vectors ------------------------------------------------------------------------------------------------------

    def first_key(self, model: int | None = None) -> int:
        """Key of a model's picture 0; a picture's number is added to it."""
        return (self.model_id if model is None else model) << _MODEL_SHIFT

    def put_vector(self, model: int, picture: int, vector: Vectors) -> None:
        """Store a unit vector (D,)."""
        self.insert(
            "INSERT INTO vectors VALUES (?, ?)", self.first_key(model) + picture, vector.astype("<f4").tobytes()
        )

    def as_vectors(self, blobs: Sequence[bytes]) -> Vectors:
        """What is stored, as (n, D) float32.

        Raises:
            NotAGalleryError: for another number of bytes.
        """
        size = 4 * self.model.width
        if wrong := next((blob for blob in blobs if len(blob) != size), None):
            raise NotAGalleryError(
                f"{self.path} is damaged: a vector has {len(wrong)} bytes, not {size}; restore a backup."
            )
        return np.frombuffer(b"".join(blobs), dtype="<f4").reshape(len(blobs), -1).astype(np.float32)


def _content(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _place(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
