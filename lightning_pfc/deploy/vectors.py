"""Embeddings as rows of an array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lightning_pfc.deploy.engines import Floats


def unit(rows: Floats) -> Floats:
    """Rows of length one; a row of zeros stays."""
    norms = np.sqrt(np.square(rows.astype(np.float64)).sum(1, keepdims=True))
    return (rows / np.where(norms == 0, 1.0, norms)).astype(np.float32)


def as_rows(things: Sequence[Any], width: int, embed: Callable[[list[Any]], Floats]) -> Floats:
    """Embeddings of pictures, and of what already are embeddings.

    Args:
        things: each a picture, or an embedding (D,) float.
        width: D.
        embed: pictures to (n, D).

    Returns:
        (N, D) float32, in order.

    Raises:
        ValueError: an embedding has another width, or numbers that are not finite.
    """
    known = [isinstance(thing, np.ndarray) and thing.dtype.kind == "f" for thing in things]
    pictures = [thing for thing, is_row in zip(things, known, strict=True) if not is_row]
    made = iter(embed(pictures) if pictures else np.zeros((0, width), np.float32))
    rows = [
        np.asarray(thing, np.float32).reshape(-1) if is_row else next(made)
        for thing, is_row in zip(things, known, strict=True)
    ]
    if wrong := [len(row) for row in rows if len(row) != width]:
        raise ValueError(f"an embedding of {wrong[0]} numbers is not of this model, whose embeddings have {width}")
    if not all(np.isfinite(row).all() for row in rows):
        raise ValueError("an embedding has numbers that are not finite, so nothing can be compared with it")
    return np.stack(rows)
