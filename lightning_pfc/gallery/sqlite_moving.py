"""Moving a gallery to another model: the old vectors serve until every picture has a new one."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_pfc.gallery.errors import GalleryError
from lightning_pfc.gallery.records import ModelRecord, Vectors, as_unit
from lightning_pfc.gallery.sqlite_file import SqliteFile
from lightning_pfc.gallery.store import Pending

_NEXT = "next_model"


def begin(file: SqliteFile, model: ModelRecord) -> None:
    """See :meth:`~lightning_pfc.gallery.store.Store.begin_next`."""
    if model.sha256 == file.model.sha256:
        raise GalleryError(f"{file.path.parent} has the vectors of model {model.sha256[:12]} already.")
    with file.writing():
        started = file.settings().get(_NEXT)
        if started is not None:
            other = file.model_record(int(started))
            if other.sha256 != model.sha256:
                raise GalleryError(
                    f"{file.path.parent} is on its way to model {other.sha256[:12]} ({other.source}): finish that, or "
                    "give it up with `pfc-gallery reembed --abort`."
                )
            return
        row = file.execute("SELECT id FROM models WHERE sha256 = ?", (model.sha256,)).fetchone()
        number = (
            row[0]
            if row
            else file.insert(
                "INSERT INTO models (sha256, width, source) VALUES (?, ?, ?)", model.sha256, model.width, model.source
            )
        )
        file.set(_NEXT, number)


def pending(file: SqliteFile, after: int, limit: int) -> list[Pending]:
    """See :meth:`~lightning_pfc.gallery.store.Store.pending`."""
    with file.reading():
        rows = file.execute(
            "SELECT pictures.id, pictures.source, identities.name, pictures.digest, previews.image FROM pictures "
            "JOIN identities ON identities.id = pictures.identity LEFT JOIN previews ON previews.picture = pictures.id "
            "WHERE pictures.id > ? AND NOT EXISTS (SELECT 1 FROM vectors WHERE vectors.id = ? + pictures.id) "
            "ORDER BY pictures.id LIMIT ?",
            (after, file.first_key(_next(file)), limit),
        ).fetchall()
    return [Pending(*row) for row in rows]


def put(file: SqliteFile, model: ModelRecord, vectors: Sequence[tuple[int, Vectors]]) -> None:
    """See :meth:`~lightning_pfc.gallery.store.Store.put_next`."""
    with file.writing():
        number = _next(file)
        if file.model_record(number).sha256 != model.sha256:
            raise given_up(str(file.path.parent), model)
        for picture, vector in vectors:
            if file.execute("SELECT 1 FROM pictures WHERE id = ?", (picture,)).fetchone():
                file.execute("DELETE FROM vectors WHERE id = ?", (file.first_key(number) + picture,))
                file.put_vector(number, picture, as_unit(vector, model.width))


def adopt(file: SqliteFile) -> None:
    """See :meth:`~lightning_pfc.gallery.store.Store.adopt_next`."""
    with file.writing():
        number, old = _next(file), file.model_id
        if waiting := pending(file, 0, 1):
            raise GalleryError(
                f"{file.path.parent}: picture {waiting[0].picture} ({waiting[0].source or waiting[0].identity}) has no "
                "vector of the next model yet, so it came meanwhile: run `pfc-gallery reembed` again, or remove it."
            )
        file.set("model", number)
        file.set("generation", int(file.settings()["generation"]) + 1)
        file.execute("DELETE FROM settings WHERE name = ?", (_NEXT,))
        _forget(file, old)
    file.reload_model()
    file.empty_log()


def abort(file: SqliteFile) -> None:
    """See :meth:`~lightning_pfc.gallery.store.Store.abort_next`."""
    with file.writing():
        number = _next(file)
        file.execute("DELETE FROM settings WHERE name = ?", (_NEXT,))
        _forget(file, number)
    file.empty_log()


def given_up(gallery: str, model: ModelRecord) -> GalleryError:
    """Somebody gave up the move to a model that is still at work."""
    return GalleryError(
        f"{gallery} is not on its way to model {model.sha256[:12]} any more: somebody gave that up, and began to "
        "move it to another one."
    )


def _forget(file: SqliteFile, number: int) -> None:
    """A model and its vectors, in a transaction of the caller."""
    file.execute("DELETE FROM vectors WHERE id >= ? AND id < ?", (file.first_key(number), file.first_key(number + 1)))
    file.execute("DELETE FROM models WHERE id = ?", (number,))


def _next(file: SqliteFile) -> int:
    started = file.settings().get(_NEXT)
    if started is None:
        raise GalleryError(f"{file.path.parent} is not on its way to another model; begin with `pfc-gallery reembed`.")
    return int(started)
