"""Identity data: sources of pictures with identities, and the data module that feeds them to any number of ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_pfc.names.lazy import lazy_names

if TYPE_CHECKING:
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
    from lightning_pfc.data.several_labels import CollateSeveralLabels, pad_labels
    from lightning_pfc.data.source import IdentityData, LabelledSet, Source
    from lightning_pfc.data.synthetic import Synthetic
    from lightning_pfc.data.verification import Pairs, VerificationSet

__all__ = [
    "CameraAugmentation",
    "ClassBalanced",
    "CollateSeveralLabels",
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
    "pad_labels",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CameraAugmentation": "lightning_pfc.data.camera",
        "ClassBalanced": "lightning_pfc.data.samplers",
        "CollateSeveralLabels": "lightning_pfc.data.several_labels",
        "pad_labels": "lightning_pfc.data.several_labels",
        "Dali": "lightning_pfc.data.dali",
        "Files": "lightning_pfc.data.files",
        "Glyphs": "lightning_pfc.data.glyphs",
        "IdentityData": "lightning_pfc.data.source",
        "IdentityDataModule": "lightning_pfc.data.datamodule",
        "IdentityGroups": "lightning_pfc.data.samplers",
        "Joint": "lightning_pfc.data.joint",
        "LabelledSet": "lightning_pfc.data.source",
        "Mix": "lightning_pfc.data.mixing",
        "Mixed": "lightning_pfc.data.samplers",
        "MixedBatch": "lightning_pfc.data.mixing",
        "Pairs": "lightning_pfc.data.verification",
        "Pipeline": "lightning_pfc.data.augment",
        "Preprocessing": "lightning_pfc.data.preprocessing",
        "RandomFlip": "lightning_pfc.data.augment",
        "Shuffled": "lightning_pfc.data.samplers",
        "Source": "lightning_pfc.data.source",
        "Synthetic": "lightning_pfc.data.synthetic",
        "VerificationSet": "lightning_pfc.data.verification",
        "augmentation": "lightning_pfc.data.augment",
    },
)
