"""Faces in photos: found by a detector that the user names, cut out and aligned as training pictures are."""

from __future__ import annotations

from lightning_pfc.faces.cutting import FACES, AlignedFace, FaceCutter, NoFaceError
from lightning_pfc.faces.detectors import Detector, Face, open_detector

__all__ = ["FACES", "AlignedFace", "Detector", "Face", "FaceCutter", "NoFaceError", "open_detector"]
