"""RandAugment (arXiv:1909.13719)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_pfc.data.counter import UInts, uniform
from lightning_pfc.data.effects.base import Effect


@dataclass(frozen=True, kw_only=True)
class RandAugment(Effect):
    """Some random operations of torchvision, each at the same strength (arXiv:1909.13719).

    The operations of one image run one after the other in Python: the only effect here that is not done by the batch.

    Attributes:
        operations: how many per image.
        magnitude: strength from 0 to 30.
    """

    operations: int = 2
    magnitude: float = 9.0

    def check(self) -> None:
        """Refuse numbers outside the scale."""
        self._require("operations", self.operations >= 1, "be at least 1")
        self._require("magnitude", 0 <= self.magnitude <= 30, "lie in [0, 30]")

    def apply(self, images: Tensor, keys: UInts) -> Tensor:
        """Change all of the images."""
        numbers = uniform(keys, 2 * self.operations)
        out = (images * 255.0).round_().to(torch.uint8)
        for i in range(len(images)):
            for n in range(self.operations):
                kind, sign = numbers[i, 2 * n : 2 * n + 2].tolist()
                out[i] = operate(out[i], int(kind * len(_OPERATIONS)), self.magnitude / 30, 1 if sign < 0.5 else -1)
        return out.to(images.dtype).mul_(1.0 / 255.0)


_OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip


_MOVES = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")


def operate(image: Tensor, number: int, strength: float, sign: int) -> Tensor:
    """One operation on a (C, H, W) uint8 image, at a strength from 0 to 1 in a direction of +1 or -1."""
    from torchvision.transforms.v2 import functional as T

    kind = _OPERATIONS[number]
    if kind in _MOVES:
        return _move(image, kind, sign * strength)
    adjust = {
        "brightness": T.adjust_brightness,
        "color": T.adjust_saturation,
        "contrast": T.adjust_contrast,
        "sharpness": T.adjust_sharpness,
    }
    if kind in adjust:
        out = adjust[kind](image, 1.0 + 0.9 * sign * strength)
    elif kind == "posterize":
        out = T.posterize(image, bits=8 - round(4 * strength))
    elif kind == "solarize":
        out = T.solarize(image, threshold=round(255 * (1 - strength)))
    elif kind == "autocontrast":
        out = T.autocontrast(image)
    elif kind == "equalize":
        out = T.equalize(image)
    else:
        out = image
    return torch.as_tensor(out)


def _move(image: Tensor, kind: str, amount: float) -> Tensor:
    """Slant, shift or turn by an amount from -1 to 1."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as T

    angle = math.degrees(math.atan(0.3 * amount))
    out = T.affine(
        image,
        angle=30.0 * amount if kind == "rotate" else 0.0,
        translate=[
            round(0.45 * amount * image.shape[2]) if kind == "translate_x" else 0,
            round(0.45 * amount * image.shape[1]) if kind == "translate_y" else 0,
        ],
        scale=1.0,
        shear=[angle if kind == "shear_x" else 0.0, angle if kind == "shear_y" else 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    return torch.as_tensor(out)
