"""Faces in photos: found by a detector that the user names, cut out and aligned as training pictures are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_pfc.faces.errors import NoFaceError
from lightning_pfc.names.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_pfc.faces.cutting import FACES, AlignedFace, FaceCutter
    from lightning_pfc.faces.detectors import Detector, Face, open_detector
    from lightning_pfc.faces.folders import AlignReport, align_photos

__all__ = [
    "FACES",
    "AlignReport",
    "AlignedFace",
    "Detector",
    "Face",
    "FaceCutter",
    "NoFaceError",
    "align_photos",
    "open_detector",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    dict.fromkeys(("FACES", "AlignedFace", "FaceCutter"), f"{__name__}.cutting")
    | dict.fromkeys(("Detector", "Face", "open_detector"), f"{__name__}.detectors")
    | dict.fromkeys(("AlignReport", "align_photos"), f"{__name__}.folders"),
)
