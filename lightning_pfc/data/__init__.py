"""Identity data: sources of pictures with identities, and the data module that feeds them to any number of ranks."""

from lightning_pfc.data.augment import RandomFlip
from lightning_pfc.data.camera import CameraAugmentation
from lightning_pfc.data.datamodule import IdentityDataModule
from lightning_pfc.data.files import Files
from lightning_pfc.data.glyphs import Glyphs
from lightning_pfc.data.source import IdentityData, LabelledSet, Source
from lightning_pfc.data.synthetic import Synthetic
from lightning_pfc.data.verification import Pairs, VerificationSet

__all__ = [
    "CameraAugmentation",
    "Files",
    "Glyphs",
    "IdentityData",
    "IdentityDataModule",
    "LabelledSet",
    "Pairs",
    "RandomFlip",
    "Source",
    "Synthetic",
    "VerificationSet",
]
