"""From a photo to aligned faces."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from lightning_pfc.data.curation.alignment import align
from lightning_pfc.data.formats.folder import read_image_file
from lightning_pfc.data.pictures.decoding import MAX_PIXELS, decode
from lightning_pfc.faces.boxes import Pixels
from lightning_pfc.faces.detectors import Detector, Face
from lightning_pfc.faces.errors import NoFaceError

Faces = Literal["largest", "central", "all"]
FACES: tuple[str, ...] = get_args(Faces)


@dataclass(frozen=True)
class AlignedFace:
    """A face as training pictures have it.

    Attributes:
        pixels: (size, size, 3) uint8 RGB.
        face: Where it was in the photo.
        others: How many more faces the photo shows.
    """

    pixels: Pixels
    face: Face
    others: int


class FaceCutter:
    """Finds faces in photos and aligns them; the one way for data sets, embeddings and the service.

    Photos are turned the way up that their EXIF tag says, as all pictures are.

    Args:
        detector: Of :func:`~lightning_pfc.faces.detectors.open_detector`.
        size: Edge of the aligned pictures.
        faces: Where there are several: ``"largest"``, ``"central"`` (nearest to the middle of the photo), ``"all"``.
        max_pixels: Bound of what is decoded; a larger JPEG is decoded at a fraction of its size.

    Raises:
        ValueError: an argument has a value that does not exist.
    """

    def __init__(
        self, detector: Detector, *, size: int = 112, faces: Faces = "largest", max_pixels: int = MAX_PIXELS
    ) -> None:
        if faces not in FACES:
            raise ValueError(f"faces={faces!r} does not exist; use {', '.join(FACES)}")
        if not 8 <= size <= 4096:
            raise ValueError(f"size={size} must be 8 to 4096 pixels")
        self.detector = detector
        self.size = size
        self.faces = faces
        self.max_pixels = max_pixels

    @property
    def settings(self) -> dict[str, Any]:
        """What its faces depend on besides the detector's file; of bounds those that are not the usual ones."""
        found: dict[str, Any] = {"size": self.size, "faces": self.faces}
        if self.max_pixels != MAX_PIXELS:
            found["max_pixels"] = self.max_pixels
        least, usual = (getattr(self.detector, name, None) for name in ("least_score", "usual_score"))
        return found if least == usual else {**found, "least_score": least}

    def file(self, path: str | os.PathLike[str]) -> list[AlignedFace]:
        """The faces of a photo in a file; errors as :meth:`photo`, and FormatError where it cannot be read."""
        return self.photo(read_image_file(Path(path)), where=os.fspath(path))

    def photo(self, data: bytes, *, where: str | Callable[[], str] = "image") -> list[AlignedFace]:
        """The faces of an encoded photo: one, or with ``faces="all"`` at least one.

        Raises:
            BrokenImageError: it cannot be decoded.
            NoFaceError: there is no face in it.
        """
        pixels = decode(data, channels=3, where=where, max_pixels=self.max_pixels)
        return self.pixels(pixels, where=where)

    def pixels(self, image: Pixels, *, where: str | Callable[[], str] = "image") -> list[AlignedFace]:
        """The faces of a decoded photo, (H, W, 3) uint8 RGB; errors as :meth:`photo`."""
        found = self.detector(image)
        if not found:
            place = where if isinstance(where, str) else where()
            raise NoFaceError(f"{place}: no face was found in it ({image.shape[1]} x {image.shape[0]} pixels)")
        chosen = found if self.faces == "all" else [self._one(found, image)]
        return [AlignedFace(align(image, face.points, size=self.size), face, len(found) - 1) for face in chosen]

    def _one(self, found: list[Face], image: Pixels) -> Face:
        if self.faces == "largest":
            return max(found, key=lambda face: face.area)
        middle = np.array([image.shape[1], image.shape[0]]) / 2
        return min(found, key=lambda face: float(np.linalg.norm((face.box[:2] + face.box[2:]) / 2 - middle)))
