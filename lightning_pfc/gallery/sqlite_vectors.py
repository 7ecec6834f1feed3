"""Vectors in a SQLite file, read in order or by picture; ``postgres_vectors`` does the same in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from lightning_pfc.gallery.records import VectorBatch, Vectors
from lightning_pfc.gallery.sqlite_file import SqliteFile

BATCH = 1000
"""Vectors in one read, and pictures in one transaction of a long job."""


def stream(file: SqliteFile, after: int) -> Iterator[VectorBatch]:
    """See :meth:`~lightning_pfc.gallery.store.Store.vectors`; those of pictures behind ``after``."""
    last = after
    first = file.first_key()
    while True:
        # read whole, so that no open question keeps a writer from emptying the log
        with file.reading():
            rows = file.execute(
                "SELECT pictures.id, pictures.identity, vectors.vector FROM pictures "
                "JOIN vectors ON vectors.id = ? + pictures.id WHERE pictures.id > ? ORDER BY pictures.id LIMIT ?",
                (first, last, BATCH),
            ).fetchall()
        if not rows:
            return
        last = rows[-1][0]
        numbers = np.array([row[:2] for row in rows], dtype=np.int64)
        yield VectorBatch(numbers[:, 0], numbers[:, 1], file.as_vectors([row[2] for row in rows]))


def of_pictures(file: SqliteFile, width: int, pictures: npt.NDArray[np.int64]) -> Vectors:
    """See :meth:`~lightning_pfc.gallery.store.Store.vectors_of`."""
    found = np.full((len(pictures), width), np.nan, dtype=np.float32)
    first = file.first_key()
    with file.reading():
        for i, picture in enumerate(pictures.tolist()):
            row = file.execute("SELECT vector FROM vectors WHERE id = ?", (first + picture,)).fetchone()
            if row is not None:
                found[i] = file.as_vectors([row[0]])[0]
    return found
