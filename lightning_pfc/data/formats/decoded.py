"""Encoded images as the table of pictures that the data module feeds to the network."""

from __future__ import annotations

import logging
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from lightning_pfc.data.formats.base import EncodedImages
from lightning_pfc.data.formats.decoding import JPEG_END, JPEG_START, MAX_PIXELS, decode, dimensions
from lightning_pfc.data.formats.errors import BrokenImageError, FormatError, TooManyBrokenImagesError

_log = logging.getLogger(__name__)

OnBroken = Literal["raise", "skip"]
Fit = Literal["exact", "stretch", "crop"]


class DecodedImages:
    """Decodes images by the batch, all to one size. Works in data loader workers, forked or spawned.

    A broken image stops the run or is skipped, as ``on_broken`` says. Skipped means: another image of the same class
    takes its place (so batches keep their size and labels stay true), and it is counted. The count is shared by all
    workers of this process; each image counts once.

    Args:
        encoded: where the bytes come from.
        size: ``(height, width)`` of all pictures; by default that of the first image.
        channels: 3 for RGB, 1 for grey.
        fit: what happens to images of another size: ``"exact"`` refuses them, ``"stretch"`` resizes each side,
            ``"crop"`` resizes until the image covers ``size`` and cuts out the middle.
        on_broken: ``"raise"`` or ``"skip"``.
        max_broken: share of the images that may be skipped, from 0 to 1. One more stops the run.
        max_pixels: images that announce more pixels count as broken.

    Raises:
        ValueError: an argument has none of the values above.
        BrokenImageError: ``size`` is not given and the first image is broken.
    """

    def __init__(
        self,
        encoded: EncodedImages,
        *,
        size: tuple[int, int] | None = None,
        channels: int = 3,
        fit: Fit = "exact",
        on_broken: OnBroken = "raise",
        max_broken: float = 0.01,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if fit not in ("exact", "stretch", "crop"):
            raise ValueError(f"fit is {fit!r}; use 'exact', 'stretch' or 'crop'.")
        if on_broken not in ("raise", "skip"):
            raise ValueError(f"on_broken is {on_broken!r}; use 'raise' or 'skip'.")
        if not 0 <= max_broken <= 1:
            raise ValueError(f"max_broken is {max_broken}; it is a share of the images, from 0 to 1.")
        self.encoded = encoded
        self.channels = channels
        self.fit = fit
        self.on_broken = on_broken
        self.max_broken = max_broken
        self.max_pixels = max_pixels
        if size is None:
            first = decode(encoded.read(0), channels=channels, where=encoded.locate(0), max_pixels=max_pixels)
            size = (first.shape[0], first.shape[1])
        self.size = (int(size[0]), int(size[1]))
        # Shared memory, so that what workers mark is seen here; a mark is one byte, so no lock is needed.
        self._broken = torch.zeros(len(encoded) if on_broken == "skip" else 0, dtype=torch.uint8)
        self._broken.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every picture."""
        return (self.channels, *self.size)

    @property
    def broken(self) -> npt.NDArray[np.int64]:
        """Positions of the images that were skipped so far, in increasing order."""
        return np.flatnonzero(self._broken.numpy())

    def __len__(self) -> int:
        return len(self.encoded)

    def fetch(self, index: npt.NDArray[np.int64]) -> Tensor:
        """(b,) positions to (b, C, H, W) uint8 images (channels last in memory).

        Raises:
            BrokenImageError: an image is broken and may not be skipped, or its class has no other one.
            TooManyBrokenImagesError: one more image than ``max_broken`` allows was skipped.
        """
        batch = np.empty((len(index), *self.size, self.channels), np.uint8)
        for row, place in enumerate(index.tolist()):
            room = batch[row]
            picture = self._picture(place, room) if self.on_broken == "raise" else self._picture_or_other(place, room)
            if picture is not room:
                room[...] = picture
        return torch.from_numpy(batch).permute(0, 3, 1, 2)

    def read(self, place: int) -> bytes:
        """The encoded bytes of a picture, for another decoder: refused here if its header is not what it should be.

        Raises:
            BrokenImageError: the image is too large, has another size where ``fit`` is "exact", is a JPEG that was cut
                off, or no image.
        """
        data = self.encoded.read(place)
        size = dimensions(data, where=lambda: self.encoded.locate(place), max_pixels=self.max_pixels)
        if data.startswith(JPEG_START) and data.rfind(JPEG_END) < 0:  # which other decoders may fill up with grey
            raise BrokenImageError(f"{self.encoded.locate(place)}: the image is cut off ({len(data)} bytes)")
        if self.fit == "exact" and size != self.size:
            raise self._other_size(place, size)
        return data

    def _picture(self, place: int, room: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The picture, in ``room`` if it can be decoded there."""
        image = decode(
            self.encoded.read(place),
            channels=self.channels,
            where=lambda: self.encoded.locate(place),
            max_pixels=self.max_pixels,
            at_least=None if self.fit == "exact" else self.size,
            out=room,
        )
        return image if image.shape[:2] == self.size else self._fitted(image, place)

    def _picture_or_other(self, place: int, room: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        if not self._broken[place]:
            try:
                return self._picture(place, room)
            except FormatError as error:
                self._skip(place, error)
        others = np.flatnonzero(self.encoded.labels == self.encoded.labels[place])
        others = np.roll(others, -int(np.searchsorted(others, place)))[1:]
        for other in others.tolist():
            if self._broken[other]:
                continue
            try:
                return self._picture(other, room)
            except FormatError as error:
                self._skip(other, error)
        label = int(self.encoded.labels[place])
        raise BrokenImageError(
            f"{self.encoded.locate(place)}: the image is broken, and so is every other one of its class {label} "
            f"({self.encoded.identities[label]}), so none can take its place. Remove the class from the data."
        )

    def _skip(self, place: int, error: FormatError) -> None:
        self._broken[place] = 1
        count = int(self._broken.sum())
        _log.warning("skipping a broken image (%d so far): %s", count, error)
        if count > self.max_broken * len(self):
            raise TooManyBrokenImagesError(
                f"{count} of {len(self)} images are broken, more than max_broken={self.max_broken:g} of them. The "
                f"last one: {error}"
            ) from error

    def _fitted(self, image: npt.NDArray[np.uint8], place: int) -> npt.NDArray[np.uint8]:
        height, width = self.size
        have_height, have_width = image.shape[:2]
        if self.fit == "exact":
            raise self._other_size(place, (have_height, have_width))
        box: tuple[float, float, float, float] = (0, 0, have_width, have_height)
        if self.fit == "crop":
            scale = min(have_height / height, have_width / width)
            cut_height, cut_width = height * scale, width * scale
            top, left = (have_height - cut_height) / 2, (have_width - cut_width) / 2
            box = (left, top, left + cut_width, top + cut_height)
        picture = Image.fromarray(image if self.channels == 3 else image[:, :, 0])
        resized = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box=box))
        return resized.reshape(height, width, self.channels)

    def _other_size(self, place: int, have: tuple[int, int]) -> BrokenImageError:
        return BrokenImageError(
            f"{self.encoded.locate(place)}: the image has {have[1]} x {have[0]} pixels instead of "
            f"{self.size[1]} x {self.size[0]}. "
            "Align the images (`pfc-data align`), or choose fit='stretch' or fit='crop'."
        )
