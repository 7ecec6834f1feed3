"""Moving a gallery in PostgreSQL to another model; see :mod:`~lightning_pfc.gallery.sqlite_moving`."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_pfc.gallery.errors import GalleryError
from lightning_pfc.gallery.postgres_database import PostgresDatabase
from lightning_pfc.gallery.postgres_vectors import to_text
from lightning_pfc.gallery.records import ModelRecord, Vectors, as_unit
from lightning_pfc.gallery.sqlite_moving import given_up
from lightning_pfc.gallery.store import Pending

_NEXT = "next_model"


def begin(database: PostgresDatabase, serving: ModelRecord, model: ModelRecord) -> None:
    """See :meth:`~lightning_pfc.gallery.store.Store.begin_next`."""
    if model.sha256 == serving.sha256:
        raise GalleryError(f"{database.name} has the vectors of model {model.sha256[:12]} already.")
    with database.writing():
        started = database.settings().get(_NEXT)
        if started is not None:
            other = database.rows("SELECT sha256, source FROM models WHERE id = %s", (int(started),))[0]
            if other[0] != model.sha256:
                raise GalleryError(
                    f"{database.name} is on its way to model {other[0][:12]} ({other[1]}): finish that, or give it up "
                    "with `pfc-gallery reembed --abort`."
                )
            return
        row = database.execute(
            "INSERT INTO models (sha256, width, source) VALUES (%s, %s, %s) RETURNING id",
            (model.sha256, model.width, model.source),
        ).fetchone()
        database.set(_NEXT, row[0])


def pending(database: PostgresDatabase, after: int, limit: int) -> list[Pending]:
    """See :meth:`~lightning_pfc.gallery.store.Store.pending`."""
    rows = database.rows(
        "SELECT p.id, p.source, i.name, p.digest, w.image FROM pictures p JOIN identities i ON i.id = p.identity "
        "LEFT JOIN previews w ON w.picture = p.id WHERE p.id > %s AND NOT EXISTS "
        "(SELECT 1 FROM vectors v WHERE v.picture = p.id AND v.model = %s) ORDER BY p.id LIMIT %s",
        (after, _next(database), limit),
    )
    return [Pending(*row)._replace(preview=row[4] and bytes(row[4])) for row in rows]


def put(database: PostgresDatabase, model: ModelRecord, vectors: Sequence[tuple[int, Vectors]]) -> None:
    """See :meth:`~lightning_pfc.gallery.store.Store.put_next`."""
    with database.writing():
        number = _next(database)
        if database.rows("SELECT sha256 FROM models WHERE id = %s", (number,))[0][0] != model.sha256:
            raise given_up(database.name, model)
        for picture, vector in vectors:
            database.execute(
                "INSERT INTO vectors SELECT %s, id, %s::vector FROM pictures WHERE id = %s "
                "ON CONFLICT (model, picture) DO UPDATE SET vector = excluded.vector",
                (number, to_text(as_unit(vector, model.width)), picture),
            )


def adopt(database: PostgresDatabase, serving: int) -> None:
    """See :meth:`~lightning_pfc.gallery.store.Store.adopt_next`."""
    with database.writing():
        number = _next(database)
        if waiting := pending(database, 0, 1):
            raise GalleryError(
                f"{database.name}: picture {waiting[0].picture} ({waiting[0].source or waiting[0].identity}) has no "
                "vector of the next model yet, so it came meanwhile: run `pfc-gallery reembed` again, or remove it."
            )
        database.set("model", number)
        database.set("generation", int(database.settings()["generation"]) + 1)
        database.execute("DELETE FROM settings WHERE name = %s", (_NEXT,))
        database.execute("DELETE FROM models WHERE id = %s", (serving,))


def abort(database: PostgresDatabase) -> None:
    """See :meth:`~lightning_pfc.gallery.store.Store.abort_next`."""
    with database.writing():
        number = _next(database)
        database.execute("DELETE FROM settings WHERE name = %s", (_NEXT,))
        database.execute("DELETE FROM models WHERE id = %s", (number,))  # and its vectors with it


def _next(database: PostgresDatabase) -> int:
    started = database.settings().get(_NEXT)
    if started is None:
        raise GalleryError(f"{database.name} is not on its way to another model; begin with `pfc-gallery reembed`.")
    return int(started)
