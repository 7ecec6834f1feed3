"""Embeddings of length one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def unit(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """(n, D) rows of length one, float32; zeros stay zeros.

    Raises:
        ValueError: a number is not finite.
    """
    rows = np.asarray(rows, np.float32)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(length).all():
        raise ValueError("an embedding has numbers that are not finite.")
    out: npt.NDArray[np.float32] = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    return out
