"""Single effects on batches of colour pictures, the steps of an augmentation pipeline.

A step maps (b, C, H, W) float32 in [0, 1] and (b,) uint64 keys to the same shape and range. Each image is changed with
the step's probability, by numbers of its own key alone. Where papers give ranges, they are the defaults.
"""

from __future__ import annotations

from lightning_pfc.data.effects.base import Effect
from lightning_pfc.data.effects.colour import LUMA, Grey, HueSaturation, Photometric, luma
from lightning_pfc.data.effects.geometry import Flip, Place
from lightning_pfc.data.effects.occlusion import Erase, KeepCrop
from lightning_pfc.data.effects.rand_augment import RandAugment
from lightning_pfc.data.effects.sharpness import Blur, LowResolution

__all__ = [
    "LUMA",
    "Blur",
    "Effect",
    "Erase",
    "Flip",
    "Grey",
    "HueSaturation",
    "KeepCrop",
    "LowResolution",
    "Photometric",
    "Place",
    "RandAugment",
    "luma",
]
