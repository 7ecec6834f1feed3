"""What every data format looks like from outside: an indexed set of encoded images with class labels."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_pfc.data.formats.texts import text_array


class EncodedImages(ABC):
    """Images as they lie in a file (JPEG, PNG, ...), each with the class it belongs to.

    Objects are read-only, can be pickled, and may be read in forked and spawned worker processes alike. The number of
    classes and of images always follows from the data.

    Attributes:
        source: where the images come from, for messages.
        labels: ``(N,)`` int64, the class of each image: contiguous, so that every class in
            ``range(num_classes)`` has at least one image.
        identities: ``(C,)`` int64 or str, the data's own name of each class: sorted, or in the order the data numbers
            them. Data whose identities already are ``0 ... C - 1`` keep them.
    """

    source: str
    labels: npt.NDArray[np.int64]
    identities: npt.NDArray[Any]

    @property
    def num_classes(self) -> int:
        """Number of classes, counted in the data."""
        return len(self.identities)

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The encoded bytes of image ``index``.

        Raises:
            IndexError: ``index`` is not in ``range(len(self))``.
            FormatError: the file does not hold what its format promises; names file and offset.
        """

    @abstractmethod
    def locate(self, index: int) -> str:
        """Where image ``index`` lies (file, and offset or row), for messages."""

    def name(self, index: int) -> str:
        """A name for image ``index`` that a converter can give it: unique, relative, with ``/`` between folders."""
        return f"{index:09d}"

    def _check_index(self, index: int) -> int:
        if not 0 <= index < len(self.labels):
            raise IndexError(f"index is {index}, but {self.source} holds {len(self)} images (0 to {len(self) - 1}).")
        return int(index)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r}, images={len(self)}, classes={self.num_classes})"


def places_digest(images: EncodedImages) -> str:
    """Of where each image lies, in order: with one more and one less, as many would stand for others."""
    digest = hashlib.sha256(images.labels.tobytes())
    for number in range(len(images)):
        digest.update(images.locate(number).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def contiguous_labels(keys: npt.NDArray[Any] | Sequence[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """Numbers the distinct identities in increasing order.

    Args:
        keys: ``(N,)`` the identity of each image, integers or strings.

    Returns:
        ``(N,)`` int64 labels in ``range(C)``, and the ``(C,)`` sorted identities: ``identities[labels] == keys``.
    """
    if len(keys) and all(isinstance(key, str) for key in keys):
        # Not by way of an array, which is as wide as its longest text.
        numbers = {name: number for number, name in enumerate(sorted(set(keys)))}
        return np.fromiter((numbers[key] for key in keys), np.int64, len(keys)), text_array(list(numbers))
    array = np.asarray(keys)
    if array.dtype.kind in "iu" and len(array):
        low, high = int(array.min()), int(array.max())
        # The usual case, 0 ... C - 1 with every class present, without sorting tens of millions of labels.
        if low >= 0 and high < 4 * len(array):
            present = np.bincount(array.astype(np.int64, copy=False), minlength=high + 1) > 0
            identities = np.flatnonzero(present)
            rank = np.cumsum(present, dtype=np.int64) - 1
            return rank[array], identities.astype(np.int64, copy=False)
    identities, labels = np.unique(array, return_inverse=True)
    return labels.astype(np.int64, copy=False).reshape(-1), identities
