"""Care of a gallery in PostgreSQL: whether it is whole, how large it is, and forgetting what was deleted."""

from __future__ import annotations

from lightning_pfc.gallery.postgres_database import PostgresDatabase


def verify(database: PostgresDatabase, model: int, width: int) -> list[str]:
    """See :meth:`~lightning_pfc.gallery.store.Store.verify`; of the vectors (``width``,) of a model, by its number."""
    found = database.rows(
        "SELECT p.id, v.picture IS NULL, coalesce(vector_dims(v.vector), 0), coalesce(vector_norm(v.vector), 0) "
        "FROM pictures p LEFT JOIN vectors v ON v.picture = p.id AND v.model = %s "
        "WHERE v.picture IS NULL OR vector_dims(v.vector) <> %s OR abs(vector_norm(v.vector) - 1) > 1e-3 "
        "ORDER BY p.id",
        (model, width),
    )
    return [
        f"picture {picture} has no vector"
        if absent
        else f"picture {picture} has a vector of {numbers} numbers, length {length:g}"
        for picture, absent, numbers, length in found
    ]


def compact(database: PostgresDatabase) -> None:
    """See :meth:`~lightning_pfc.gallery.store.Store.compact`."""
    with database.writing():
        database.execute("DELETE FROM removals")
        database.set("generation", int(database.settings()["generation"]) + 1)
    with database.reading():
        database.execute("VACUUM")


def bytes_on_disk(database: PostgresDatabase) -> int:
    """See :meth:`~lightning_pfc.gallery.store.Store.bytes_on_disk`."""
    return int(
        database.rows(
            "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0) FROM pg_class c JOIN pg_namespace n "
            "ON n.oid = c.relnamespace WHERE n.nspname = 'pfc_gallery' AND c.relkind = 'r'"
        )[0][0]
    )
