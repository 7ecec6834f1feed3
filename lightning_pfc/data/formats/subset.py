"""Some images of another data set."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from lightning_pfc.data.formats.base import EncodedImages, contiguous_labels


class Subset(EncodedImages):
    """The images at ``rows`` of ``images``, in that order; classes left without images disappear.

    Args:
        images: the data set.
        rows: ``(n,)`` positions in it.

    Raises:
        ValueError: ``rows`` is empty or holds a position that ``images`` has not.
    """

    def __init__(self, images: EncodedImages, rows: npt.NDArray[np.int64]) -> None:
        rows = np.asarray(rows, dtype=np.int64)
        if not len(rows) or rows.min() < 0 or rows.max() >= len(images):
            raise ValueError(
                f"rows must be some of the {len(images)} positions of {images.source}, got {len(rows)} of them."
            )
        self.images = images
        self.rows = rows
        self.source = images.source
        self.labels, kept = contiguous_labels(images.labels[rows])
        self.identities = images.identities[kept]

    @override
    def read(self, index: int) -> bytes:
        return self.images.read(int(self.rows[self._check_index(index)]))

    @override
    def locate(self, index: int) -> str:
        return self.images.locate(int(self.rows[index]))

    @override
    def name(self, index: int) -> str:
        return self.images.name(int(self.rows[index]))
