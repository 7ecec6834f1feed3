"""A gallery in one SQLite file: on the disk before a method returns, overwritten when deleted."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_pfc.gallery.errors import (
    GalleryBusyError,
    GalleryError,
    IdentityExistsError,
    NotAGalleryError,
    UnknownIdentityError,
)
from lightning_pfc.gallery.records import Identity, ModelRecord, NewPicture, VectorBatch, Vectors, as_unit
from lightning_pfc.gallery.schema import DATABASE, create_database, explained, open_database, transaction
from lightning_pfc.gallery.store import Position

BATCH = 1000
"""Pictures in one transaction of a long job, and vectors in one read."""

_MODEL_SHIFT = 40


class SqliteStore:
    """See :class:`~lightning_pfc.gallery.store.Store`.

    Args:
        folder: of the gallery.

    Raises:
        NotAGalleryError: for a folder without one, a damaged file, or one of a newer version.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / DATABASE
        self._lock = threading.RLock()
        self._db = open_database(self.path)
        with self._reading():
            settings = dict(self._db.execute("SELECT name, value FROM settings"))
        try:
            self.pooling = settings["pooling"]
            self._model_id = int(settings["model"])
            self._model = self._model_record(self._model_id)
        except (KeyError, ValueError, TypeError) as error:
            self.close()
            raise NotAGalleryError(f"{self.path} was never finished: remove the folder and build it again.") from error
        self._empty_log()  # a process that was killed may have left what it deleted in there

    @classmethod
    def create(cls, folder: Path, model: ModelRecord, pooling: str) -> SqliteStore:
        """A new, empty gallery.

        Raises:
            GalleryError: if there is one already, or the folder cannot be written.
        """
        if pooling not in ("max", "mean"):
            raise GalleryError(f"pooling={pooling!r} must be 'max' or 'mean': how an identity's pictures score as one.")
        create_database(
            folder / DATABASE,
            [
                (
                    "INSERT INTO models (id, sha256, width, source) VALUES (1, ?, ?, ?)",
                    (model.sha256, model.width, model.source),
                ),
                ("INSERT INTO settings VALUES ('model', '1'), ('pooling', ?)", (pooling,)),
            ],
        )
        return cls(folder)

    @property
    def model(self) -> ModelRecord:
        """The model that made the vectors."""
        return self._model

    def close(self) -> None:
        """Let go of the file; the log beside it goes with it."""
        with self._lock:
            self._db.close()

    # --- changes ------------------------------------------------------------------------------------------------------

    def enrol(self, name: str, pictures: Sequence[NewPicture], metadata: Mapping[str, Any] | None = None) -> Identity:
        """See :meth:`Store.enrol`."""
        _check_name(name)
        with self._writing():
            try:
                identity = self._insert("INSERT INTO identities (name, metadata) VALUES (?, ?)", name, _json(metadata))
            except sqlite3.IntegrityError as error:
                raise IdentityExistsError(
                    f"identity {name!r} exists already; add pictures to it, remove it, or choose another name."
                ) from error
            for picture in pictures:
                self._add_picture(identity, picture)
        return self.identity(name)

    def add_pictures(self, name: str, pictures: Sequence[NewPicture]) -> Identity:
        """See :meth:`Store.add_pictures`."""
        with self._writing():
            identity = self._number(name)
            for picture in pictures:
                self._add_picture(identity, picture)
        return self.identity(name)

    def extend(self, pictures: Iterable[tuple[str, NewPicture]]) -> int:
        """See :meth:`Store.extend`."""
        rest, count = iter(pictures), 0
        while batch := list(islice(rest, BATCH)):
            with self._writing():
                for name, picture in batch:
                    _check_name(name)
                    self._db.execute("INSERT OR IGNORE INTO identities (name) VALUES (?)", (name,))
                    self._add_picture(self._number(name), picture)
            count += len(batch)
        return count

    def remove(self, name: str) -> None:
        """See :meth:`Store.remove`."""
        with self._writing():
            number = self._number(name)
            self._db.execute("DELETE FROM pictures WHERE identity = ?", (number,))
            self._db.execute("DELETE FROM identities WHERE id = ?", (number,))
        self._empty_log()

    def remove_picture(self, picture: int) -> None:
        """See :meth:`Store.remove_picture`."""
        with self._writing():
            if not self._db.execute("DELETE FROM pictures WHERE id = ?", (picture,)).rowcount:
                raise UnknownIdentityError(f"there is no picture {picture}; `pfc-gallery info` lists what there is.")
        self._empty_log()

    def rename(self, name: str, new: str) -> Identity:
        """See :meth:`Store.rename`."""
        _check_name(new)
        with self._writing():
            number = self._number(name)
            try:
                self._db.execute("UPDATE identities SET name = ? WHERE id = ?", (new, number))
            except sqlite3.IntegrityError as error:
                raise IdentityExistsError(f"identity {new!r} exists already; choose another name.") from error
        return self.identity(new)

    def set_metadata(self, name: str, metadata: Mapping[str, Any]) -> Identity:
        """See :meth:`Store.set_metadata`."""
        with self._writing():
            self._db.execute("UPDATE identities SET metadata = ? WHERE id = ?", (_json(metadata), self._number(name)))
        return self.identity(name)

    # --- questions ----------------------------------------------------------------------------------------------------

    def identity(self, name: str) -> Identity:
        """See :meth:`Store.identity`."""
        with self._reading():
            row = self._db.execute("SELECT id, name, metadata FROM identities WHERE name = ?", (name,)).fetchone()
            if row is None:
                raise _unknown(name)
            return self._identity(*row)

    def identities(self, after: str = "", limit: int = BATCH) -> list[Identity]:
        """See :meth:`Store.identities`."""
        with self._reading():
            rows = self._db.execute(
                "SELECT id, name, metadata FROM identities WHERE name > ? ORDER BY name LIMIT ?", (after, limit)
            ).fetchall()
            return [self._identity(*row) for row in rows]

    def preview(self, picture: int) -> bytes | None:
        """See :meth:`Store.preview`."""
        with self._reading():
            row = self._db.execute("SELECT image FROM previews WHERE picture = ?", (picture,)).fetchone()
            return None if row is None else bytes(row[0])

    def count(self) -> tuple[int, int]:
        """See :meth:`Store.count`."""
        with self._reading():
            identities = self._db.execute("SELECT count(*) FROM identities").fetchone()[0]
            return identities, self._db.execute("SELECT count(*) FROM pictures").fetchone()[0]

    def bytes_on_disk(self) -> int:
        """See :meth:`Store.bytes_on_disk`."""
        return sum(file.stat().st_size for file in self.path.parent.glob(self.path.name + "*"))

    # --- for an index -------------------------------------------------------------------------------------------------

    def position(self) -> Position:
        """See :meth:`Store.position`."""
        with self._reading():
            last = dict(self._db.execute("SELECT name, seq FROM sqlite_sequence"))
        return Position(last.get("pictures", 0), last.get("removals", 0))

    def vectors(self, since: Position) -> Iterator[VectorBatch]:
        """See :meth:`Store.vectors`."""
        last = since.picture
        first = self._model_id << _MODEL_SHIFT
        while True:
            # read whole, so that no open question keeps a writer from emptying the log
            with self._reading():
                rows = self._db.execute(
                    "SELECT pictures.id, pictures.identity, vectors.vector FROM pictures "
                    "JOIN vectors ON vectors.id = ? + pictures.id WHERE pictures.id > ? ORDER BY pictures.id LIMIT ?",
                    (first, last, BATCH),
                ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            numbers = np.array([row[:2] for row in rows], dtype=np.int64)
            yield VectorBatch(numbers[:, 0], numbers[:, 1], self._stack([row[2] for row in rows]))

    def removed(self, since: Position) -> npt.NDArray[np.int64]:
        """See :meth:`Store.removed`."""
        with self._reading():
            rows = self._db.execute("SELECT picture FROM removals WHERE id > ?", (since.removal,)).fetchall()
        return np.array([row[0] for row in rows], dtype=np.int64)

    def vectors_of(self, pictures: npt.NDArray[np.int64]) -> Vectors:
        """See :meth:`Store.vectors_of`."""
        found = np.full((len(pictures), self._model.width), np.nan, dtype=np.float32)
        first = self._model_id << _MODEL_SHIFT
        with self._reading():
            for i, picture in enumerate(pictures.tolist()):
                row = self._db.execute("SELECT vector FROM vectors WHERE id = ?", (first + picture,)).fetchone()
                if row is not None:
                    found[i] = self._stack([row[0]])[0]
        return found

    def names_of(self, identities: npt.NDArray[np.int64]) -> dict[int, str]:
        """See :meth:`Store.names_of`."""
        names = {}
        with self._reading():
            for number in set(identities.tolist()):
                row = self._db.execute("SELECT name FROM identities WHERE id = ?", (number,)).fetchone()
                if row is not None:
                    names[number] = row[0]
        return names

    # --- inside -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock, explained(self.path), transaction(self._db):
            yield

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock, explained(self.path):
            yield

    def _insert(self, statement: str, *values: Any) -> int:
        number = self._db.execute(statement, values).lastrowid
        assert number is not None
        return number

    def _add_picture(self, identity: int, picture: NewPicture) -> None:
        vector = as_unit(picture.vector, self._model.width)
        number = self._insert("INSERT INTO pictures (identity, source) VALUES (?, ?)", identity, picture.source)
        self._insert("INSERT INTO vectors VALUES (?, ?)", (self._model_id << _MODEL_SHIFT) + number, _as_bytes(vector))
        if picture.preview is not None:
            self._insert("INSERT INTO previews VALUES (?, ?)", number, picture.preview)

    def _number(self, name: str) -> int:
        row = self._db.execute("SELECT id FROM identities WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise _unknown(name)
        return int(row[0])

    def _identity(self, number: int, name: str, metadata: str) -> Identity:
        pictures = self._db.execute("SELECT id FROM pictures WHERE identity = ? ORDER BY id", (number,)).fetchall()
        return Identity(name, tuple(row[0] for row in pictures), json.loads(metadata))

    def _model_record(self, number: int) -> ModelRecord:
        with self._reading():
            return ModelRecord(
                *self._db.execute("SELECT sha256, width, source FROM models WHERE id = ?", (number,)).fetchone()
            )

    def _stack(self, blobs: list[bytes]) -> Vectors:
        size = 4 * self._model.width
        if wrong := next((blob for blob in blobs if len(blob) != size), None):
            raise NotAGalleryError(
                f"{self.path} is damaged: a vector has {len(wrong)} bytes, not {size}; restore a backup."
            )
        return np.frombuffer(b"".join(blobs), dtype="<f4").reshape(len(blobs), -1).astype(np.float32)

    def _empty_log(self) -> None:
        """Overwrite deleted rows in the file itself, and cut the log, which still has them, to nothing."""
        with self._reading():
            for _ in range(100):
                busy = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
                if not busy:
                    return
                time.sleep(0.1)
        raise GalleryBusyError(
            f"{self.path.parent}: done, but another process keeps the log with the deleted numbers open; when it has "
            "ended, run `pfc-gallery compact`."
        )


def _check_name(name: str) -> None:
    if not name or len(name) > 500 or not name.isprintable():
        raise GalleryError(f"identity {name[:80]!r} must be 1 to 500 printable characters.")


def _unknown(name: str) -> UnknownIdentityError:
    return UnknownIdentityError(f"there is no identity {name[:200]!r} in the gallery; enrol it first.")


def _json(metadata: Mapping[str, Any] | None) -> str:
    try:
        return json.dumps(metadata or {}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise GalleryError(f"metadata must be plain JSON values: {error}.") from error


def _as_bytes(vector: Vectors) -> bytes:
    return vector.astype("<f4").tobytes()
