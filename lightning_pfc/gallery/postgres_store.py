"""A gallery in PostgreSQL with pgvector, for those who outgrow one machine; searched where it lies."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_pfc.gallery import postgres_answers, postgres_care, postgres_moving, postgres_vectors
from lightning_pfc.gallery.errors import GalleryError, OtherModelError, UnknownIdentityError
from lightning_pfc.gallery.names import check_name, check_pooling, exists_already, metadata_json, unknown
from lightning_pfc.gallery.postgres_database import PostgresDatabase
from lightning_pfc.gallery.postgres_schema import TABLES, VERSION
from lightning_pfc.gallery.postgres_vectors import BATCH, to_text
from lightning_pfc.gallery.records import (
    Identity,
    Match,
    ModelRecord,
    NewPicture,
    Photos,
    VectorBatch,
    Vectors,
    as_unit,
)
from lightning_pfc.gallery.store import Pending, Position


class PostgresStore:
    """See :class:`~lightning_pfc.gallery.store.Store`; it can search by itself too.

    What is deleted is gone from the tables; PostgreSQL overwrites its bytes when it needs the room, and its own logs
    and backups are its administrator's.

    Args:
        address: ``postgresql://USER@HOST/DATABASE``.

    Raises:
        NotAGalleryError: if the database has no gallery, or one of a newer version.
        GalleryError: if it cannot be reached.
    """

    def __init__(self, address: str) -> None:
        self.database = PostgresDatabase(address)
        settings = self.database.settings()
        self.pooling, self.photos = settings["pooling"], Photos.of_settings(settings)
        self.reload_model()

    @classmethod
    def create(cls, address: str, model: ModelRecord, pooling: str, photos: Photos | None = None) -> PostgresStore:
        """A new, empty gallery in the schema ``pfc_gallery`` of a database.

        Raises:
            GalleryError: if there is one already, or the database lacks pgvector.
        """
        check_pooling(pooling)
        database = PostgresDatabase(address)
        try:
            with database.writing():
                if database.execute("SELECT to_regnamespace('pfc_gallery')").fetchone()[0] is not None:
                    raise GalleryError(f"{database.name} has a gallery already; add to it, or use another database.")
                database.execute("CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA public")
                database.execute(TABLES)
                statement = "INSERT INTO models (sha256, width, source) VALUES (%s, %s, %s) RETURNING id"
                number = database.execute(statement, (model.sha256, model.width, model.source)).fetchone()[0]
                first = {"version": VERSION, "model": number, "generation": 0, "pooling": pooling}
                for name, value in {**first, **(photos.to_settings() if photos else {})}.items():
                    database.set(name, value)
        finally:
            database.close()
        return cls(address)

    @property
    def model(self) -> ModelRecord:
        """The model that made the vectors."""
        return self._model

    def reload_model(self) -> None:
        """Read again which model serves."""
        self.model_id = int(self.database.settings()["model"])
        row = self.database.rows("SELECT sha256, width, source FROM models WHERE id = %s", (self.model_id,))[0]
        self._model = ModelRecord(*row)

    def close(self) -> None:
        """Let go of the connection."""
        self.database.close()

    def transaction(self) -> AbstractContextManager[None]:
        """See :meth:`Store.transaction`."""
        return self.database.writing()

    # --- changes ------------------------------------------------------------------------------------------------------

    def enrol(self, name: str, pictures: Sequence[NewPicture], metadata: Mapping[str, Any] | None = None) -> Identity:
        """See :meth:`Store.enrol`."""
        check_name(name)
        with self.database.writing():
            self._check_model()
            number = self._made(name, metadata)
            if number is None:
                raise exists_already(name)
            for picture in pictures:
                self._add_picture(number, picture)
            return self.identity(name)

    def add_pictures(self, name: str, pictures: Sequence[NewPicture]) -> Identity:
        """See :meth:`Store.add_pictures`."""
        with self.database.writing():
            self._check_model()
            number = self._number(name)
            for picture in pictures:
                self._add_picture(number, picture)
            return self.identity(name)

    def has(self, name: str, digest: str) -> bool:
        """See :meth:`Store.has`."""
        return bool(
            self.database.rows(
                "SELECT 1 FROM pictures p JOIN identities i ON i.id = p.identity WHERE i.name = %s AND p.digest = %s",
                (name, digest),
            )
        )

    def extend(self, pictures: Iterable[tuple[str, NewPicture]]) -> int:
        """See :meth:`Store.extend`."""
        rest, count = iter(pictures), 0
        while batch := list(islice(rest, BATCH)):
            with self.database.writing():
                self._check_model()
                for name, picture in batch:
                    check_name(name)
                    number = self._made(name, None)
                    self._add_picture(self._number(name) if number is None else number, picture)
            count += len(batch)
        return count

    def remove(self, name: str) -> None:
        """See :meth:`Store.remove`, but for what the class says of deletion."""
        with self.database.writing():
            self.database.execute("DELETE FROM identities WHERE id = %s", (self._number(name),))
            postgres_answers.forget(self.database)

    def remove_picture(self, picture: int) -> None:
        """See :meth:`Store.remove_picture`, likewise."""
        with self.database.writing():
            if not self.database.execute("DELETE FROM pictures WHERE id = %s", (picture,)).rowcount:
                raise UnknownIdentityError(f"there is no picture {picture}; `pfc-gallery list` says what there is.")
            postgres_answers.forget(self.database)

    def rename(self, name: str, new: str) -> Identity:
        """See :meth:`Store.rename`."""
        check_name(new)
        with self.database.writing():
            number = self._number(name)
            if self.database.execute("SELECT 1 FROM identities WHERE name = %s", (new,)).fetchone():
                raise exists_already(new, "")
            self.database.execute("UPDATE identities SET name = %s WHERE id = %s", (new, number))
            return self.identity(new)

    def set_metadata(self, name: str, metadata: Mapping[str, Any]) -> Identity:
        """See :meth:`Store.set_metadata`."""
        with self.database.writing():
            values = (metadata_json(metadata), self._number(name))
            self.database.execute("UPDATE identities SET metadata = %s WHERE id = %s", values)
            return self.identity(name)

    # --- requests that may come twice ---------------------------------------------------------------------------------

    def answer(self, key: str, request: str) -> str | None:
        """See :meth:`Store.answer`."""
        return postgres_answers.answer(self.database, key, request)

    def put_answer(self, key: str, request: str, answer: str) -> None:
        """See :meth:`Store.put_answer`."""
        postgres_answers.put(self.database, key, request, answer)

    # --- moving to another model --------------------------------------------------------------------------------------

    def begin_next(self, model: ModelRecord) -> None:
        """See :meth:`Store.begin_next`."""
        postgres_moving.begin(self.database, self.model, model)

    def pending(self, after: int = 0, limit: int = BATCH) -> list[Pending]:
        """See :meth:`Store.pending`."""
        return postgres_moving.pending(self.database, after, limit)

    def put_next(self, model: ModelRecord, vectors: Sequence[tuple[int, Vectors]]) -> None:
        """See :meth:`Store.put_next`."""
        postgres_moving.put(self.database, model, vectors)

    def adopt_next(self) -> None:
        """See :meth:`Store.adopt_next`."""
        postgres_moving.adopt(self.database, self.model_id)
        self.reload_model()

    def abort_next(self) -> None:
        """See :meth:`Store.abort_next`."""
        postgres_moving.abort(self.database)

    # --- care ---------------------------------------------------------------------------------------------------------

    def verify(self) -> list[str]:
        """See :meth:`Store.verify`; the database looks after its own files."""
        return postgres_care.verify(self.database, self.model_id, self.model.width)

    def compact(self) -> None:
        """See :meth:`Store.compact`."""
        postgres_care.compact(self.database)

    def backup(self, folder: Path) -> None:
        """Not here.

        Raises:
            GalleryError: PostgreSQL has a tool for it.
        """
        raise GalleryError(f"{self.database.name}: copy it with `pg_dump --schema=pfc_gallery`.")

    def bytes_on_disk(self) -> int:
        """See :meth:`Store.bytes_on_disk`."""
        return postgres_care.bytes_on_disk(self.database)

    # --- questions ----------------------------------------------------------------------------------------------------

    def identity(self, name: str) -> Identity:
        """See :meth:`Store.identity`."""
        rows = self._identities("WHERE i.name = %s", (name,))
        if not rows:
            raise unknown(name)
        return rows[0]

    def identities(self, after: str = "", limit: int = BATCH) -> list[Identity]:
        """See :meth:`Store.identities`."""
        return self._identities("WHERE i.name > %s ORDER BY i.name LIMIT %s", (after, limit))

    def preview(self, picture: int) -> bytes | None:
        """See :meth:`Store.preview`."""
        found = self.database.rows("SELECT image FROM previews WHERE picture = %s", (picture,))
        return bytes(found[0][0]) if found else None

    def count(self) -> tuple[int, int]:
        """See :meth:`Store.count`."""
        row = self.database.rows("SELECT (SELECT count(*) FROM identities), (SELECT count(*) FROM pictures)")[0]
        return int(row[0]), int(row[1])

    def nearest(self, unit: Vectors, k: int) -> list[Match]:
        """The ``k`` identities nearest to a unit vector (D,), found by the database; all vectors are looked at."""
        return postgres_vectors.nearest(self.database, self.model_id, self.pooling, unit, k)

    # --- for an index -------------------------------------------------------------------------------------------------

    def position(self) -> Position:
        """See :meth:`Store.position`."""
        self._check_model()
        row = self.database.rows(
            "SELECT coalesce((SELECT max(id) FROM pictures), 0), coalesce((SELECT max(id) FROM removals), 0), "
            "(SELECT value FROM settings WHERE name = 'generation')"
        )[0]
        return Position(int(row[0]), int(row[1]), int(row[2]))

    def vectors(self, since: Position) -> Iterator[VectorBatch]:
        """See :meth:`Store.vectors`."""
        return postgres_vectors.stream(self.database, self.model_id, since.picture)

    def removed(self, since: Position) -> npt.NDArray[np.int64]:
        """See :meth:`Store.removed`."""
        rows = self.database.rows("SELECT picture FROM removals WHERE id > %s", (since.removal,))
        return np.array([row[0] for row in rows], dtype=np.int64)

    def vectors_of(self, pictures: npt.NDArray[np.int64]) -> Vectors:
        """See :meth:`Store.vectors_of`."""
        return postgres_vectors.of_pictures(self.database, self.model_id, self.model.width, pictures)

    def names_of(self, identities: npt.NDArray[np.int64]) -> dict[int, str]:
        """See :meth:`Store.names_of`."""
        return dict(self.database.rows("SELECT id, name FROM identities WHERE id = ANY(%s)", (identities.tolist(),)))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _check_model(self) -> None:
        if int(self.database.settings()["model"]) != self.model_id:
            raise OtherModelError(f"{self.database.name} was moved to another model; open it again, with that model.")

    def _made(self, name: str, metadata: Mapping[str, Any] | None) -> int | None:
        row = self.database.execute(
            "INSERT INTO identities (name, metadata) VALUES (%s, %s) ON CONFLICT DO NOTHING RETURNING id",
            (name, metadata_json(metadata)),
        ).fetchone()
        return None if row is None else int(row[0])

    def _add_picture(self, identity: int, picture: NewPicture) -> None:
        vector = as_unit(picture.vector, self.model.width)
        row = self.database.execute(
            "INSERT INTO pictures (identity, source, digest) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING RETURNING id",
            (identity, picture.source, picture.key),
        ).fetchone()
        if row is None:  # the identity has it already
            return
        self.database.execute("INSERT INTO vectors VALUES (%s, %s, %s)", (self.model_id, row[0], to_text(vector)))
        if picture.preview is not None:
            self.database.execute("INSERT INTO previews VALUES (%s, %s)", (row[0], picture.preview))

    def _number(self, name: str) -> int:
        row = self.database.execute("SELECT id FROM identities WHERE name = %s", (name,)).fetchone()
        if row is None:
            raise unknown(name)
        return int(row[0])

    def _identities(self, where: str, values: Sequence[Any]) -> list[Identity]:
        rows = self.database.rows(
            "SELECT i.name, i.metadata, coalesce((SELECT array_agg(p.id ORDER BY p.id) FROM pictures p "
            f"WHERE p.identity = i.id), '{{}}') FROM identities i {where}",
            values,
        )
        return [
            Identity(name, tuple(pictures), metadata if isinstance(metadata, dict) else json.loads(metadata))
            for name, metadata, pictures in rows
        ]
