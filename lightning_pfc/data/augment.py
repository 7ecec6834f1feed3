"""Augmentation by the batch: an image changes by its own key alone, so no batch, worker or rank matters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_pfc.checked import checked
from lightning_pfc.data.camera import CameraAugmentation, to_unit_
from lightning_pfc.data.counter import UInts, stream, uniform
from lightning_pfc.data.effects import (
    Blur,
    Effect,
    Erase,
    Flip,
    Grey,
    HueSaturation,
    KeepCrop,
    LowResolution,
    Photometric,
    Place,
    RandAugment,
)
from lightning_pfc.registry import name_and_arguments

_IN_CACHE = 1 << 18  # pixels that are worked on at a time

Augment = Callable[[Tensor, UInts], Tensor]
"""(b, C, H, W) uint8 images and (b,) uint64 keys to (b, C, H, W) float32 in [-1, 1]."""


@checked
@dataclass(frozen=True, kw_only=True)
class RandomFlip:
    """Mirror left and right: all that the published Partial FC recipes do to faces.

    Attributes:
        probability: of an image to be mirrored.
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability={self.probability} must lie in [0, 1].")

    def __call__(self, images: Tensor, keys: UInts) -> Tensor:
        """(b, C, H, W) uint8 and (b,) keys to (b, C, H, W) float32 in [-1, 1]."""
        rows = np.flatnonzero(self.chosen(keys)).tolist()
        out = torch.empty_like(images, dtype=torch.float32)
        # A few pictures at a time, which then stay in the cache from the first step to the last. They are mirrored as
        # bytes: the same result at a fraction of the cost of mirroring floats.
        few = max(1, _IN_CACHE // max(1, images[0].numel())) if len(images) else 1
        for start in range(0, len(images), few):
            stop = start + few
            out[start:stop] = images[start:stop]
            while rows and rows[0] < stop:
                row = rows.pop(0)
                out[row] = images[row : row + 1].flip(3)[0]
            to_unit_(out[start:stop])
        return out

    def chosen(self, keys: UInts) -> NDArray[np.bool_]:
        """(b,) keys to (b,): which images are mirrored."""
        return np.asarray(uniform(keys, 1)[:, 0] < self.probability)


def mirrors(augment: Augment) -> bool:
    """Whether an augmentation mirrors pictures; one that is not made here is believed not to."""
    steps = augment.steps if isinstance(augment, Pipeline) else (augment,)
    return any(isinstance(step, RandomFlip | Flip) and step.probability > 0 for step in steps)


@checked
class Pipeline:
    """Effects one after the other.

    Args:
        steps: the effects; each gets keys of its own, so taking one out leaves the others as they were.
    """

    def __init__(self, steps: Sequence[Effect]) -> None:
        self.steps = tuple(steps)
        names = [type(step).__name__ for step in self.steps]
        self._salts = [(_name_number(name), names[:i].count(name)) for i, name in enumerate(names)]

    def __call__(self, images: Tensor, keys: UInts) -> Tensor:
        """(b, C, H, W) uint8 and (b,) keys to (b, C, H, W) float32 in [-1, 1]."""
        x = images.to(torch.float32).mul_(1.0 / 255.0)
        for step, own in zip(self.steps, self.streams(keys), strict=True):
            x = step(x, own)
        return x.mul(2.0).sub_(1.0)

    def streams(self, keys: UInts) -> list[UInts]:
        """(b,) keys to the (b,) keys of each step."""
        return [stream(keys, *salt) for salt in self._salts]

    def __repr__(self) -> str:
        return f"Pipeline({list(self.steps)})"


def _name_number(name: str) -> int:
    """A number that stays the same from process to process, as ``hash`` does not."""
    return int.from_bytes(name.encode()[:8], "big")


def _dali() -> Augment:
    return Pipeline(
        [
            LowResolution(probability=0.1, side=(0.5, 0.8)),
            Blur(probability=0.2, windows=(3, 5)),
            HueSaturation(probability=0.2, hue=(0.0, 20.0), saturation=(1.0, 1.2)),
            Grey(probability=0.1),
            Flip(),
        ]
    )


def _crop_low_resolution_photometric() -> Augment:
    return Pipeline([KeepCrop(probability=0.2), LowResolution(probability=0.2), Photometric(probability=0.2), Flip()])


def _grid_sample() -> Augment:
    return Pipeline(
        [
            Place(probability=0.2, scale=(0.8, 1.2), rotation=20.0),
            RandAugment(operations=2, magnitude=14.0),
            Blur(probability=0.2),
            Erase(probability=0.2, area=(0.02, 0.25), ratio=(0.5, 2.0), fill="black"),
            Flip(),
        ]
    )


def _affine(strength: float = 1.0) -> Augment:
    return Pipeline([_moved(strength)])


def _affine_flip(strength: float = 1.0) -> Augment:
    return Pipeline([_moved(strength), Flip()])


def _moved(strength: float) -> Effect:
    if not 0 <= strength <= 2:
        raise ValueError(f"strength={strength!r} of affine must lie in [0, 2]; 0 moves nothing, 1 is the default.")
    return Place(
        scale=(1 - 0.12 * strength, 1 + 0.12 * strength),
        rotation=7.0 * strength,
        shift=0.06 * strength,
        shear=0.1 * strength,
        stretch=0.1 * strength,
        outside="edge",
    )


PRESETS: dict[str, Callable[..., Augment]] = {
    "none": lambda: RandomFlip(probability=0.0),
    "flip": RandomFlip,
    "affine": _affine,
    "affine_flip": _affine_flip,
    "camera": CameraAugmentation,
    "insightface_dali": _dali,
    "adaface": _crop_low_resolution_photometric,
    "randaugment": lambda: Pipeline([RandAugment(), Flip()]),
    "erasing": lambda: Pipeline([Flip(), Erase()]),
    "cvlface_grid_sample": _grid_sample,
}
"""What the peers' recipes do to faces, by name; see :func:`augmentation`."""


MOVED_AND_MIRRORED: Mapping[str, Any] = {"name": "affine_flip", "strength": 0.5}
"""Mirrored faces learned more where they were moved half as far (``recipes/benchmarks/as_it_comes``)."""

KINDS: Mapping[str, str | Mapping[str, Any]] = {
    "faces": MOVED_AND_MIRRORED,
    "objects": MOVED_AND_MIRRORED,
    "characters": "affine",
    "spectrograms": "none",
}
"""What pictures show, and the augmentation that leaves it what it is."""


def augmentation(choice: str | Mapping[str, Any]) -> Augment:
    """An augmentation by name, or by a mapping of ``name`` and arguments, such as ``{name: camera, strength: 0.5}``.

    * ``none``; ``flip``: mirroring, the published Partial FC recipes;
    * ``affine``: turned by up to 7 degrees, shifted by up to 6 % of the edge, 12 % larger or smaller, slanted and
      stretched a little; ``affine_flip``: and mirrored; ``strength`` multiplies the moves of both, 0 to 2;
    * ``camera``: what a camera does to small bright characters, the default of glyphs;
    * ``insightface_dali``: low resolution, blur, hue and saturation, grey, flip, with the figures of InsightFace's
      ``dali_aug``;
    * ``adaface``: crop, low resolution, photometric changes with 20 % each, and flip (AdaFace, arXiv:2204.00964;
      CVLface's ``basic_v1``);
    * ``randaugment``: two operations of strength 9 of 30, and flip; ``erasing``: flip and random erasing;
    * ``cvlface_grid_sample``: scale, rotation, RandAugment 2 x 14, blur, cut-out and flip, after CVLface's
      ``gridsample_v1``.

    Raises:
        ValueError: for another name; the message lists them.
        TypeError: for arguments that it does not take; ``flip``, ``affine``, ``affine_flip`` and ``camera`` take some.
    """
    name, arguments = name_and_arguments(choice)
    if name not in PRESETS:
        raise ValueError(f"augment={name!r} is not one of {', '.join(sorted(PRESETS))}.")
    try:
        return PRESETS[name](**arguments)
    except TypeError as error:
        raise TypeError(f"augment {name!r} does not take {', '.join(arguments)}: {error}") from error
