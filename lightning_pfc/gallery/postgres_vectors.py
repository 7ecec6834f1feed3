"""Vectors in PostgreSQL: as pgvector writes them, read in order or by picture, and searched where they lie."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from lightning_pfc.gallery.postgres_database import PostgresDatabase
from lightning_pfc.gallery.records import Match, VectorBatch, Vectors

BATCH = 1000


def to_text(vector: Vectors) -> str:
    """A vector (D,) as pgvector reads it; nine digits bring a float32 back as it was."""
    return "[" + ",".join(f"{value:.9g}" for value in vector.tolist()) + "]"


def stream(database: PostgresDatabase, model: int, after: int) -> Iterator[VectorBatch]:
    """See :meth:`~lightning_pfc.gallery.store.Store.vectors`; those of a model, of pictures behind ``after``."""
    last = after
    while rows := database.rows(
        "SELECT p.id, p.identity, v.vector::text FROM pictures p JOIN vectors v ON v.picture = p.id "
        "WHERE v.model = %s AND p.id > %s ORDER BY p.id LIMIT %s",
        (model, last, BATCH),
    ):
        last = rows[-1][0]
        numbers = np.array([row[:2] for row in rows], dtype=np.int64)
        yield VectorBatch(numbers[:, 0], numbers[:, 1], np.stack([_from_text(row[2]) for row in rows]))


def of_pictures(database: PostgresDatabase, model: int, width: int, pictures: npt.NDArray[np.int64]) -> Vectors:
    """See :meth:`~lightning_pfc.gallery.store.Store.vectors_of`."""
    rows = database.rows(
        "SELECT picture, vector::text FROM vectors WHERE model = %s AND picture = ANY(%s)",
        (model, pictures.tolist()),
    )
    found = {picture: _from_text(text) for picture, text in rows}
    gone = np.full(width, np.nan, dtype=np.float32)
    return np.stack([found.get(picture, gone) for picture in pictures.tolist()]) if len(pictures) else gone[None][:0]


def nearest(database: PostgresDatabase, model: int, pooling: str, unit: Vectors, k: int) -> list[Match]:
    """The ``k`` identities nearest to a unit vector (D,); all vectors are looked at."""
    pooled = "max" if pooling == "max" else "avg"
    found = database.rows(
        f"WITH scored AS (SELECT p.identity, p.id, -(v.vector <#> %s::vector) AS score FROM vectors v "
        "JOIN pictures p ON p.id = v.picture WHERE v.model = %s), "
        f"pooled AS (SELECT identity, {pooled}(score) AS score, (array_agg(id ORDER BY score DESC))[1] AS picture "
        "FROM scored GROUP BY identity ORDER BY score DESC, identity LIMIT %s) "
        "SELECT i.name, pooled.score, pooled.picture FROM pooled JOIN identities i ON i.id = pooled.identity "
        "ORDER BY pooled.score DESC, i.id",
        (to_text(unit), model, k),
    )
    return [Match(name, float(score), int(picture)) for name, score, picture in found]


def _from_text(text: str) -> Vectors:
    return np.array(json.loads(text), dtype=np.float32)
