"""A gallery in one SQLite file: on the disk before a method returns, overwritten when deleted."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_pfc.gallery import sqlite_answers, sqlite_care, sqlite_moving, sqlite_vectors
from lightning_pfc.gallery.errors import GalleryError, UnknownIdentityError
from lightning_pfc.gallery.names import check_name, check_pooling, exists_already, metadata_json, unknown
from lightning_pfc.gallery.records import Identity, ModelRecord, NewPicture, Photos, VectorBatch, Vectors, as_unit
from lightning_pfc.gallery.sqlite_file import SqliteFile
from lightning_pfc.gallery.sqlite_schema import DATABASE, create_database
from lightning_pfc.gallery.sqlite_vectors import BATCH
from lightning_pfc.gallery.store import Pending, Position


class SqliteStore:
    """See :class:`~lightning_pfc.gallery.store.Store`.

    Args:
        folder: of the gallery.
        for_reading: nothing is going to be written, so a place where nothing can be written will do.

    Raises:
        NotAGalleryError: for a folder without one, a damaged file, or one of a newer version.
    """

    def __init__(self, folder: Path, *, for_reading: bool = False) -> None:
        self._file = SqliteFile(folder / DATABASE, for_reading=for_reading)
        # A process that was killed may have left what it deleted in there. Who reads or writes now is not waited for,
        # and who only reads need not be allowed to.
        with contextlib.suppress(GalleryError) if for_reading else contextlib.nullcontext():
            self._file.emptied_log()

    @classmethod
    def create(cls, folder: Path, model: ModelRecord, pooling: str, photos: Photos | None = None) -> SqliteStore:
        """A new, empty gallery.

        Raises:
            GalleryError: if there is one already, or the folder cannot be written.
        """
        check_pooling(pooling)
        create_database(
            folder / DATABASE,
            [
                (
                    "INSERT INTO models (id, sha256, width, source) VALUES (1, ?, ?, ?)",
                    (model.sha256, model.width, model.source),
                ),
                ("INSERT INTO settings VALUES ('model', '1'), ('generation', '0'), ('pooling', ?)", (pooling,)),
                *(
                    ("INSERT INTO settings VALUES (?, ?)", one)
                    for one in (photos.to_settings().items() if photos else ())
                ),
            ],
        )
        return cls(folder)

    @property
    def model(self) -> ModelRecord:
        """The model that made the vectors."""
        return self._file.model

    @property
    def pooling(self) -> str:
        """See :attr:`Store.pooling`."""
        return self._file.settings()["pooling"]

    @property
    def photos(self) -> Photos | None:
        """See :attr:`Store.photos`."""
        return Photos.of_settings(self._file.settings())

    def close(self) -> None:
        """Let go of the file; the log beside it goes with it."""
        self._file.close()

    def transaction(self) -> AbstractContextManager[None]:
        """See :meth:`Store.transaction`."""
        return self._file.writing()

    # --- changes ------------------------------------------------------------------------------------------------------

    def enrol(self, name: str, pictures: Sequence[NewPicture], metadata: Mapping[str, Any] | None = None) -> Identity:
        """See :meth:`Store.enrol`."""
        check_name(name)
        with self._file.writing():
            try:
                identity = self._file.insert(
                    "INSERT INTO identities (name, metadata) VALUES (?, ?)", name, metadata_json(metadata)
                )
            except sqlite3.IntegrityError as error:
                raise exists_already(name) from error
            for picture in pictures:
                self._add_picture(identity, picture)
        return self.identity(name)

    def add_pictures(self, name: str, pictures: Sequence[NewPicture]) -> Identity:
        """See :meth:`Store.add_pictures`."""
        with self._file.writing():
            identity = self._number(name)
            for picture in pictures:
                self._add_picture(identity, picture)
        return self.identity(name)

    def has(self, name: str, digest: str) -> bool:
        """See :meth:`Store.has`."""
        with self._file.reading():
            found = self._file.execute(
                "SELECT 1 FROM pictures JOIN identities ON identities.id = pictures.identity "
                "WHERE identities.name = ? AND pictures.digest = ?",
                (name, digest),
            ).fetchone()
        return found is not None

    def extend(self, pictures: Iterable[tuple[str, NewPicture]]) -> int:
        """See :meth:`Store.extend`."""
        rest, count = iter(pictures), 0
        while batch := list(islice(rest, BATCH)):
            with self._file.writing():
                for name, picture in batch:
                    check_name(name)
                    self._file.execute("INSERT OR IGNORE INTO identities (name) VALUES (?)", (name,))
                    self._add_picture(self._number(name), picture)
            count += len(batch)
        return count

    def remove(self, name: str) -> None:
        """See :meth:`Store.remove`."""
        with self._file.writing():
            number = self._number(name)
            self._file.execute("DELETE FROM pictures WHERE identity = ?", (number,))
            self._file.execute("DELETE FROM identities WHERE id = ?", (number,))
            sqlite_answers.forget(self._file)
        self._file.empty_log()

    def remove_picture(self, picture: int) -> None:
        """See :meth:`Store.remove_picture`."""
        with self._file.writing():
            if not self._file.execute("DELETE FROM pictures WHERE id = ?", (picture,)).rowcount:
                raise UnknownIdentityError(f"there is no picture {picture}; `pfc-gallery list` says which there are.")
            sqlite_answers.forget(self._file)
        self._file.empty_log()

    def rename(self, name: str, new: str) -> Identity:
        """See :meth:`Store.rename`."""
        check_name(new)
        with self._file.writing():
            number = self._number(name)
            try:
                self._file.execute("UPDATE identities SET name = ? WHERE id = ?", (new, number))
            except sqlite3.IntegrityError as error:
                raise exists_already(new, "") from error
        return self.identity(new)

    def set_metadata(self, name: str, metadata: Mapping[str, Any]) -> Identity:
        """See :meth:`Store.set_metadata`."""
        with self._file.writing():
            self._file.execute(
                "UPDATE identities SET metadata = ? WHERE id = ?", (metadata_json(metadata), self._number(name))
            )
        return self.identity(name)

    # --- requests that may come twice ---------------------------------------------------------------------------------

    def answer(self, key: str, request: str) -> str | None:
        """See :meth:`Store.answer`."""
        return sqlite_answers.answer(self._file, key, request)

    def put_answer(self, key: str, request: str, answer: str) -> None:
        """See :meth:`Store.put_answer`."""
        sqlite_answers.put(self._file, key, request, answer)

    # --- moving to another model --------------------------------------------------------------------------------------

    def begin_next(self, model: ModelRecord) -> None:
        """See :meth:`Store.begin_next`."""
        sqlite_moving.begin(self._file, model)

    def pending(self, after: int = 0, limit: int = BATCH) -> list[Pending]:
        """See :meth:`Store.pending`."""
        return sqlite_moving.pending(self._file, after, limit)

    def put_next(self, model: ModelRecord, vectors: Sequence[tuple[int, Vectors]]) -> None:
        """See :meth:`Store.put_next`."""
        sqlite_moving.put(self._file, model, vectors)

    def adopt_next(self) -> None:
        """See :meth:`Store.adopt_next`."""
        sqlite_moving.adopt(self._file)

    def abort_next(self) -> None:
        """See :meth:`Store.abort_next`."""
        sqlite_moving.abort(self._file)

    # --- care ---------------------------------------------------------------------------------------------------------

    def verify(self) -> list[str]:
        """See :meth:`Store.verify`."""
        return sqlite_care.verify(self._file)

    def compact(self) -> None:
        """See :meth:`Store.compact`."""
        sqlite_care.compact(self._file)

    def backup(self, folder: Path) -> None:
        """See :meth:`Store.backup`."""
        sqlite_care.backup(self._file, folder)

    # --- questions ----------------------------------------------------------------------------------------------------

    def identity(self, name: str) -> Identity:
        """See :meth:`Store.identity`."""
        with self._file.reading():
            row = self._file.execute("SELECT id, name, metadata FROM identities WHERE name = ?", (name,)).fetchone()
            if row is None:
                raise unknown(name)
            return self._identity(*row)

    def identities(self, after: str = "", limit: int = BATCH) -> list[Identity]:
        """See :meth:`Store.identities`."""
        with self._file.reading():
            rows = self._file.execute(
                "SELECT id, name, metadata FROM identities WHERE name > ? ORDER BY name LIMIT ?", (after, limit)
            ).fetchall()
            return [self._identity(*row) for row in rows]

    def preview(self, picture: int) -> bytes | None:
        """See :meth:`Store.preview`."""
        with self._file.reading():
            row = self._file.execute("SELECT image FROM previews WHERE picture = ?", (picture,)).fetchone()
            return None if row is None else bytes(row[0])

    def count(self) -> tuple[int, int]:
        """See :meth:`Store.count`."""
        with self._file.reading():
            identities = self._file.execute("SELECT count(*) FROM identities").fetchone()[0]
            return identities, self._file.execute("SELECT count(*) FROM pictures").fetchone()[0]

    def bytes_on_disk(self) -> int:
        """See :meth:`Store.bytes_on_disk`."""
        return self._file.bytes_on_disk()

    # --- for an index -------------------------------------------------------------------------------------------------

    def position(self) -> Position:
        """See :meth:`Store.position`."""
        with self._file.reading():
            self._file.check_place()
            last = dict(self._file.execute("SELECT name, seq FROM sqlite_sequence"))
            self._file.check_model()
            generation = int(self._file.settings()["generation"])
        return Position(last.get("pictures", 0), last.get("removals", 0), generation)

    def vectors(self, since: Position) -> Iterator[VectorBatch]:
        """See :meth:`Store.vectors`."""
        return sqlite_vectors.stream(self._file, since.picture)

    def removed(self, since: Position) -> npt.NDArray[np.int64]:
        """See :meth:`Store.removed`."""
        with self._file.reading():
            rows = self._file.execute("SELECT picture FROM removals WHERE id > ?", (since.removal,)).fetchall()
        return np.array([row[0] for row in rows], dtype=np.int64)

    def vectors_of(self, pictures: npt.NDArray[np.int64]) -> Vectors:
        """See :meth:`Store.vectors_of`."""
        return sqlite_vectors.of_pictures(self._file, self.model.width, pictures)

    def names_of(self, identities: npt.NDArray[np.int64]) -> dict[int, str]:
        """See :meth:`Store.names_of`."""
        names = {}
        with self._file.reading():
            for number in set(identities.tolist()):
                row = self._file.execute("SELECT name FROM identities WHERE id = ?", (number,)).fetchone()
                if row is not None:
                    names[number] = row[0]
        return names

    # --- inside, in a transaction of the caller -----------------------------------------------------------------------

    def _add_picture(self, identity: int, picture: NewPicture) -> None:
        vector = as_unit(picture.vector, self.model.width)
        added = self._file.execute(
            "INSERT OR IGNORE INTO pictures (identity, source, digest) VALUES (?, ?, ?)",
            (identity, picture.source, picture.key),
        )
        if not added.rowcount or added.lastrowid is None:  # the identity has it already
            return
        number = added.lastrowid
        self._file.put_vector(self._file.model_id, number, vector)
        if picture.preview is not None:
            self._file.insert("INSERT INTO previews VALUES (?, ?)", number, picture.preview)

    def _number(self, name: str) -> int:
        row = self._file.execute("SELECT id FROM identities WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise unknown(name)
        return int(row[0])

    def _identity(self, number: int, name: str, metadata: str) -> Identity:
        pictures = self._file.execute("SELECT id FROM pictures WHERE identity = ? ORDER BY id", (number,)).fetchall()
        return Identity(name, tuple(row[0] for row in pictures), self._file.as_metadata(metadata, name))
