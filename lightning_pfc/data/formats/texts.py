"""Many short texts in one block of memory: shared by forked workers, and no longer than the texts are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_PADDED = 1 << 26  # bytes that an array of padded texts may take whatever they are


class Texts:
    """Names of files by number.

    Args:
        texts: the names; undecodable bytes in them survive.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        encoded = [os.fsencode(text) for text in texts]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._bytes[start : int(self._ends[index])])


def text_array(texts: Sequence[str]) -> npt.NDArray[Any]:
    """Texts as an array: of NumPy's own kind, unless one long text among many would make it huge; then of objects."""
    longest = max(map(len, texts), default=0)
    padded = 4 * longest * len(texts)
    if padded > max(_PADDED, 32 * sum(map(len, texts))) or any("\0" in text for text in texts):
        out = np.empty(len(texts), dtype=object)
        out[:] = texts
        return out
    return np.array(texts, dtype=np.str_)
