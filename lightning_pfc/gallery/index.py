"""Exact search in memory: every vector is looked at, in half precision or eight bits."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_pfc.data.formats.errors import missing_library
from lightning_pfc.gallery.errors import GalleryError
from lightning_pfc.gallery.records import Vectors

ROUNDING = {"float16": 2.0**-10, "8bit": 2.0**-7}
"""How far a score of unit vectors can be from float32's: at most (float16), or eight standard deviations (8 bits)."""

_EIGHT_BIT_RANGE = 0.5  # of a number in a unit vector; what is beyond is cut, and set right by the rescoring


class Found(NamedTuple):
    """Entries that a search found, best first: their keys (n,) int64 and scores (n,) float32."""

    keys: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]


class ExactIndex:
    """Vectors of at most unit length by a key, compared by their dot products.

    Args:
        width: D.
        precision: "float16", or "8bit" for half of its memory and an error that only rescoring mends.

    Raises:
        MissingLibraryError: without faiss.
        GalleryError: for another precision.
    """

    def __init__(self, width: int, precision: str = "float16") -> None:
        try:
            import faiss
        except ImportError as error:
            raise missing_library("faiss-cpu", "Searching a gallery") from error
        if precision not in ROUNDING:
            raise GalleryError(f"precision={precision!r} must be one of {', '.join(ROUNDING)}.")
        kind = faiss.ScalarQuantizer.QT_fp16 if precision == "float16" else faiss.ScalarQuantizer.QT_8bit_uniform
        self._faiss: Any = faiss
        self._index = faiss.IndexScalarQuantizer(width, kind, faiss.METRIC_INNER_PRODUCT)
        if precision == "8bit":  # a fixed range: what was stored early must not decide how later vectors are rounded
            self._index.train(np.array([[-_EIGHT_BIT_RANGE] * width, [_EIGHT_BIT_RANGE] * width], dtype=np.float32))
        self.rounding = ROUNDING[precision]
        self._keys = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def keys(self) -> npt.NDArray[np.int64]:
        """Keys (n,) of all entries, in no order."""
        return self._keys[: len(self)]

    def add(self, keys: npt.NDArray[np.int64], vectors: Vectors) -> None:
        """New entries: keys (n,), none of which is there yet, and vectors (n, D)."""
        count = len(self)
        if count + len(keys) > len(self._keys):
            self._keys = np.resize(self._keys, max(count + len(keys), len(self._keys) * 3 // 2))
        self._keys[count : count + len(keys)] = keys
        self._index.add(np.ascontiguousarray(vectors, dtype=np.float32))

    def remove(self, keys: npt.NDArray[np.int64]) -> None:
        """Forget entries; their numbers are overwritten in memory. Keys that are not there are fine."""
        for slot in np.flatnonzero(np.isin(self.keys, keys))[::-1].tolist():
            last = len(self) - 1
            codes = self._codes()
            codes[slot] = codes[last]
            codes[last] = 0
            self._keys[slot] = self._keys[last]
            self._index.ntotal = last
            self._index.codes.resize(last * self._index.code_size)

    def search(self, vector: Vectors, count: int) -> Found:
        """The ``count`` entries that score highest with a unit vector (D,); fewer where there are fewer."""
        count = min(count, len(self))
        if count == 0:
            return Found(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
        scores, slots = self._index.search(np.ascontiguousarray(vector[None], dtype=np.float32), count)
        return Found(self._keys[slots[0]], scores[0])

    def _codes(self) -> npt.NDArray[np.uint8]:
        codes = self._index.codes
        flat: npt.NDArray[np.uint8] = self._faiss.rev_swig_ptr(codes.data(), codes.size())
        return flat.reshape(-1, self._index.code_size)
