"""Identity data: sources of pictures with identities, and the data module that feeds them to any number of ranks."""

from lightning_pfc.data.augment import Pipeline, RandomFlip, augmentation
from lightning_pfc.data.camera import CameraAugmentation
from lightning_pfc.data.dali import Dali
from lightning_pfc.data.datamodule import IdentityDataModule
from lightning_pfc.data.files import Files
from lightning_pfc.data.glyphs import Glyphs
from lightning_pfc.data.joint import Joint
from lightning_pfc.data.mixing import Mix, MixedBatch
from lightning_pfc.data.preprocessing import Preprocessing
from lightning_pfc.data.samplers import ClassBalanced, IdentityGroups, Mixed, Shuffled
from lightning_pfc.data.source import IdentityData, LabelledSet, Source
from lightning_pfc.data.synthetic import Synthetic
from lightning_pfc.data.verification import Pairs, VerificationSet

__all__ = [
    "CameraAugmentation",
    "ClassBalanced",
    "Dali",
    "Files",
    "Glyphs",
    "IdentityData",
    "IdentityDataModule",
    "IdentityGroups",
    "Joint",
    "LabelledSet",
    "Mix",
    "Mixed",
    "MixedBatch",
    "Pairs",
    "Pipeline",
    "Preprocessing",
    "RandomFlip",
    "Shuffled",
    "Source",
    "Synthetic",
    "VerificationSet",
    "augmentation",
]
