"""Mixup and CutMix: pictures of two classes in one, with both labels and the share of the first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_pfc.checked import checked
from lightning_pfc.data.counter import UInts


class MixedBatch(NamedTuple):
    """A training batch of mixed pictures. Its loss is ``share * loss(labels) + (1 - share) * loss(other)``.

    Attributes:
        images: (b, C, H, W) float32 in [-1, 1].
        labels: (b,) int64, class of the first picture of each.
        other: (b,) int64, class of the second.
        share: () float32, how much of the first is in each; one number for the global batch.
    """

    images: Tensor
    labels: Tensor
    other: Tensor
    share: Tensor


@checked
@dataclass(frozen=True, kw_only=True)
class Mix:
    """Mixes neighbours of a batch: picture 2i with picture 2i + 1, and the other way round.

    One share, and for CutMix one rectangle, serves the whole global batch; with an even batch size neighbours are on
    the same rank, so the result is the same on any number of ranks.

    Attributes:
        mixup: alpha of mixup's Beta(alpha, alpha) (arXiv:1710.09412); 0 switches it off.
        cutmix: alpha of CutMix's (arXiv:1905.04899); 0 switches it off. With both, each batch takes one of them.
        probability: of a batch to be mixed at all.
    """

    mixup: float = 0.2
    cutmix: float = 0.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0; 0 switches it off.")
        if not (self.mixup or self.cutmix):
            raise ValueError("mixup=0 and cutmix=0 mix nothing; leave Mix out instead.")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability={self.probability} must lie in [0, 1].")

    def __call__(self, images: Tensor, labels: Tensor, key: UInts) -> MixedBatch:
        """Mix a batch.

        Args:
            images: (b, C, H, W) float32.
            labels: (b,) int64.
            key: (1,) uint64, what the share and the rectangle depend on; the same on every rank.
        """
        random = np.random.Generator(np.random.Philox(key=int(key[0])))
        apply, which, x, y = random.random(4)
        place = torch.arange(len(images))
        partner = (place ^ 1).clamp_(max=len(images) - 1)  # the last of an odd batch is left as it is
        other = labels[partner]
        if apply >= self.probability:
            return MixedBatch(images, labels, labels, torch.tensor(1.0))
        use_cutmix = bool(self.cutmix) and (not self.mixup or which < 0.5)
        share = float(random.beta(self.cutmix, self.cutmix) if use_cutmix else random.beta(self.mixup, self.mixup))
        if not use_cutmix:
            return MixedBatch(torch.lerp(images[partner], images, share), labels, other, torch.tensor(share))
        height, width = images.shape[2:]
        tall, wide = round(height * (1 - share) ** 0.5), round(width * (1 - share) ** 0.5)
        top, left = int(y * (height - tall + 1)), int(x * (width - wide + 1))
        mixed = images.clone()
        mixed[:, :, top : top + tall, left : left + wide] = images[partner][:, :, top : top + tall, left : left + wide]
        return MixedBatch(mixed, labels, other, torch.tensor(1.0 - tall * wide / (height * width)))
