"""What requests that may come twice were answered: kept for some days, and not beyond what they speak of."""

from __future__ import annotations

import time

from lightning_pfc.gallery.names import REMOVED, answer_of
from lightning_pfc.gallery.sqlite_file import SqliteFile

_LAST = 3 * 24 * 3600.0  # seconds


def answer(file: SqliteFile, key: str, request: str) -> str | None:
    """See :meth:`~lightning_pfc.gallery.store.Store.answer`."""
    with file.reading():
        row = file.execute("SELECT request, answer FROM answers WHERE key = ?", (key,)).fetchone()
    return None if row is None else answer_of(key, request, *row)


def put(file: SqliteFile, key: str, request: str, answer: str) -> None:
    """See :meth:`~lightning_pfc.gallery.store.Store.put_answer`."""
    now = time.time()
    with file.writing():
        file.execute("DELETE FROM answers WHERE at < ?", (now - _LAST,))
        file.execute("INSERT INTO answers VALUES (?, ?, ?, ?)", (key, request, answer, now))


def forget(file: SqliteFile) -> None:
    """Overwrite answers all of whose pictures have gone, in the transaction that removed the last: they have names."""
    file.execute(
        "UPDATE answers SET answer = ? WHERE answer <> ? AND NOT EXISTS ("
        "SELECT 1 FROM json_each(answer, '$.pictures') AS one JOIN pictures ON pictures.id = one.value)",
        (REMOVED, REMOVED),
    )
