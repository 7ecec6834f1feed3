"""Made-up identities: separable classes of any number, computed when asked for. For smoke runs and tests."""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass
from typing import overload

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lightning_pfc.checked import checked
from lightning_pfc.data.augment import RandomFlip
from lightning_pfc.data.counter import normal, stream
from lightning_pfc.data.source import IdentityData, LabelledSet, Task
from lightning_pfc.data.verification import VerificationSet, make_pairs
from lightning_pfc.ignored import warn_idle_fields


class CyclicLabels:
    """The labels ``i % num_classes`` of images ``i``, for any number of images in no memory.

    Args:
        length: number of images.
        num_classes: number of classes.
    """

    def __init__(self, length: int, num_classes: int) -> None:
        self.length = length
        self.num_classes = num_classes

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[np.int64]: ...
    @overload
    def __getitem__(self, index: int) -> int: ...
    def __getitem__(self, index: NDArray[np.int64] | int) -> NDArray[np.int64] | int:
        return index % self.num_classes

    def __array__(self, dtype: type | None = None, copy: bool | None = None) -> NDArray[np.int64]:
        return (np.arange(self.length, dtype=np.int64) % self.num_classes).astype(dtype or np.int64)


class SyntheticImages:
    """Image i is the pattern of identity ``first_identity + i % num_identities`` under a disturbance of its own.

    A pattern is a coarse grid of normal numbers, drawn out smoothly over the image.

    Args:
        length: number of images.
        num_identities: how many identities take turns.
        first_identity: id of the first.
        first_image: added to the image numbers, so that two tables show different images of the same identities.
        shape: (C, H, W).
        dim: numbers per pattern and channel: the dimension in which classes differ.
        noise: standard deviation of the disturbance, where a pattern has 1.
        seed: of patterns and disturbances.
    """

    def __init__(
        self,
        length: int,
        num_identities: int,
        *,
        shape: tuple[int, int, int],
        dim: int,
        noise: float,
        seed: int,
        first_identity: int = 0,
        first_image: int = 0,
    ) -> None:
        self.length = length
        self.num_identities = num_identities
        self.first_identity = first_identity
        self.first_image = first_image
        self.image_shape = shape
        self.dim = dim
        self.noise = noise
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def fetch(self, index: NDArray[np.int64]) -> Tensor:
        """(b,) positions to (b, C, H, W) uint8 images."""
        channels, height, width = self.image_shape
        grid = max(1, round(self.dim**0.5))
        numbers = channels * grid * grid
        identity = self.first_identity + index % self.num_identities
        latent = normal(stream(self.seed, 1, identity), numbers)
        latent = latent + self.noise * normal(stream(self.seed, 2, index + self.first_image), numbers)
        coarse = torch.from_numpy(latent).view(len(index), channels, grid, grid)
        smooth = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=True)
        return (127.5 + 40.0 * smooth).clamp_(0, 255).to(torch.uint8)


@checked
@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """Separable classes that nobody has to download; any number of them, since nothing is stored.

    Attributes:
        num_classes: classes to train on.
        images_per_class: training images of each.
        image_size: edge in pixels.
        channels: 1 or 3.
        dim: numbers that make a class's pattern; more make classes easier to tell apart. Rounded to a square.
        noise: disturbance of an image, where patterns have standard deviation 1.
        task: "open" verifies identities that were never trained on, "closed" classifies new images of the classes.
        test_classes: identities in the validation and in the test set (of the training classes, where closed).
        test_images_per_class: images of each.
        impostors: pairs of different identities for the rates.
        seed: of everything.
    """

    num_classes: int = 1000
    images_per_class: int = 20
    image_size: int = 32
    channels: int = 1
    dim: int = 36
    noise: float = 0.6
    task: Task = "open"
    test_classes: int = 200
    test_images_per_class: int = 4
    impostors: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("num_classes", 2),
            ("images_per_class", 1),
            ("image_size", 4),
            ("dim", 1),
            ("test_images_per_class", 1 if self.task == "closed" else 2),
            ("test_classes", 1 if self.task == "closed" else 20),
            ("impostors", 1),
        ):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name}={value} must be at least {least}.")
        if self.channels not in (1, 3):
            raise ValueError(f"channels={self.channels} must be 1 or 3.")
        if self.task not in ("open", "closed"):
            raise ValueError(f'task={self.task!r} must be "open" or "closed".')
        if self.task == "closed":
            warn_idle_fields(self, ["impostors"], 'task="closed" makes no pairs.')
        if not self.noise >= 0:
            raise ValueError(f"noise={self.noise} must be at least 0.")

    def prepare(self) -> None:
        """Nothing to do."""

    def open(self) -> IdentityData:
        """Describe the data; images are computed when they are fetched."""
        length = self.num_classes * self.images_per_class
        return IdentityData(
            train=self._images(length, self.num_classes),
            labels=CyclicLabels(length, self.num_classes),
            num_classes=self.num_classes,
            task=self.task,
            fingerprint=hashlib.sha256(repr(astuple(self)).encode()).hexdigest()[:16],
            augment=RandomFlip(probability=0.0),
            validation={"val": self._closed(1) if self.task == "closed" else self._open(1)},
            test={"test": self._closed(2) if self.task == "closed" else self._open(2)},
            description=f"synthetic: {self.num_classes:,} classes, {length:,} images",
        )

    def _images(self, length: int, identities: int, first_identity: int = 0, first_image: int = 0) -> SyntheticImages:
        return SyntheticImages(
            length,
            identities,
            first_identity=first_identity,
            first_image=first_image,
            shape=(self.channels, self.image_size, self.image_size),
            dim=self.dim,
            noise=self.noise,
            seed=self.seed,
        )

    def _closed(self, part: int) -> LabelledSet:
        classes = min(self.test_classes, self.num_classes)
        length = classes * self.test_images_per_class
        images = self._images(length, classes, first_image=self.num_classes * self.images_per_class + part * length)
        return LabelledSet(images, CyclicLabels(length, classes), "new images of the training classes")

    def _open(self, part: int) -> VerificationSet:
        length = self.test_classes * self.test_images_per_class
        first = self.num_classes + part * self.test_classes
        images = self._images(
            length, self.test_classes, first_identity=first, first_image=(self.images_per_class + part) << 40
        )
        identity = first + np.arange(length) % self.test_classes
        pairs = make_pairs(identity, np.arange(length), seed=self.seed + part, impostors=self.impostors)
        return VerificationSet(images, pairs, torch.from_numpy(identity), "identities never trained on")
