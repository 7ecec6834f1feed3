"""What requests that may come twice were answered, in PostgreSQL; ``sqlite_answers`` does the same in a file."""

from __future__ import annotations

from lightning_pfc.gallery.names import REMOVED, answer_of
from lightning_pfc.gallery.postgres_database import PostgresDatabase


def answer(database: PostgresDatabase, key: str, request: str) -> str | None:
    """See :meth:`~lightning_pfc.gallery.store.Store.answer`."""
    found = database.rows("SELECT request, answer FROM answers WHERE key = %s", (key,))
    return answer_of(key, request, *found[0]) if found else None


def put(database: PostgresDatabase, key: str, request: str, answer: str) -> None:
    """See :meth:`~lightning_pfc.gallery.store.Store.put_answer`."""
    with database.writing():
        database.execute("DELETE FROM answers WHERE at < now() - interval '3 days'")
        database.execute("INSERT INTO answers (key, request, answer) VALUES (%s, %s, %s)", (key, request, answer))


def forget(database: PostgresDatabase) -> None:
    """Overwrite answers all of whose pictures have gone, in the transaction that removed the last: they have names."""
    database.execute(
        "UPDATE answers SET answer = %s WHERE answer <> %s AND NOT EXISTS ("
        "SELECT 1 FROM jsonb_array_elements_text(answer::jsonb -> 'pictures') AS one "
        "JOIN pictures ON pictures.id = one::bigint)",
        (REMOVED, REMOVED),
    )
