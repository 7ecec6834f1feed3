"""What a gallery is made of, as plain values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ModelRecord:
    """The model that made the vectors.

    Attributes:
        sha256: of its weights' file, in hexadecimal; what tells one model from another.
        width: D, numbers in a vector.
        source: where it was found, so that it need not be named again.
    """

    sha256: str
    width: int
    source: str


class Photos(NamedTuple):
    """What the pictures of a gallery are: photos, in which a face is found first, or pictures of one thing.

    Attributes:
        taken: whether they are photos.
        detector: file of the detector; "" is the one of the export.
    """

    taken: bool
    detector: str = ""

    @classmethod
    def of_settings(cls, settings: Mapping[str, str]) -> Photos | None:
        """As a store remembers it; None where nobody said."""
        return cls(settings["photos"] == "1", settings.get("detector", "")) if "photos" in settings else None

    def to_settings(self) -> dict[str, str]:
        """For a store to remember."""
        return {"photos": "1" if self.taken else "0", "detector": self.detector}


@dataclass(frozen=True)
class NewPicture:
    """A picture to be enrolled.

    Attributes:
        vector: (D,) float; its length does not matter, its direction does.
        source: where the picture came from, for people to read.
        digest: what tells it from the identity's other pictures, such as the hash of its file; an identity has each
            picture once. Left out, it is the hash of the vector.
        preview: a small encoded image to show, or None.
    """

    vector: Vectors
    source: str = ""
    preview: bytes | None = None
    digest: str = ""

    @property
    def key(self) -> str:
        """``digest``, or what stands for it."""
        return self.digest or hashlib.sha256(np.asarray(self.vector, dtype="<f4").tobytes()).hexdigest()


@dataclass(frozen=True)
class Identity:
    """One identity with its pictures.

    Attributes:
        name: unique in the gallery.
        pictures: numbers of its pictures, ascending.
        metadata: what its owner wants to remember, plain JSON values.
    """

    name: str
    pictures: tuple[int, ...]
    metadata: dict[str, Any] = field(default_factory=dict)


class VectorBatch(NamedTuple):
    """Some pictures' vectors: picture numbers (n,) int64, identity numbers (n,) int64, unit vectors (n, D) float32."""

    pictures: npt.NDArray[np.int64]
    identities: npt.NDArray[np.int64]
    vectors: Vectors


class Match(NamedTuple):
    """One identity that a search found: its name, its score (a cosine), and the picture that scored highest."""

    identity: str
    score: float
    picture: int


@dataclass(frozen=True)
class GalleryInfo:
    """Figures of a gallery: format version, model, how many of what, bytes on disk, identities' scoring."""

    version: int
    model: ModelRecord
    identities: int
    pictures: int
    bytes_on_disk: int
    pooling: str


def as_unit(vector: npt.ArrayLike, width: int) -> Vectors:
    """``vector`` (D,) as float32 of length one.

    Raises:
        ValueError: for another width, numbers that are not finite, or a vector of zeros.
    """
    found = np.asarray(vector, dtype=np.float64).reshape(-1)
    if found.shape != (width,):
        raise ValueError(f"vector has {found.shape[0]} numbers; the gallery's model gives {width}.")
    length = float(np.linalg.norm(found))
    if not np.isfinite(length) or length == 0.0:
        raise ValueError(f"vector has length {length}; it must be finite and not zero.")
    return (found / length).astype(np.float32)
