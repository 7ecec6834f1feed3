"""Encoded images as the table of pictures that the data module feeds to the network."""

from __future__ import annotations

import logging
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_pfc.checked import checked
from lightning_pfc.data.errors import BrokenImageError, FormatError, TooManyBrokenImagesError
from lightning_pfc.data.formats.base import EncodedImages
from lightning_pfc.data.formats.kept import KeptPictures
from lightning_pfc.data.pictures.decoding import MAX_PIXELS, MOST_PIXELS, decode, is_plain_jpeg
from lightning_pfc.data.pictures.modes import Background
from lightning_pfc.data.preprocessing import Fit, Preprocessing, Resampling, as_bitmap

_log = logging.getLogger(__name__)

OnBroken = Literal["raise", "skip"]


@checked
class DecodedImages:
    """Decodes images by the batch, all to one size; those of a small set once. Works in loader workers of any kind.

    A broken image stops the run or is skipped, as ``on_broken`` says. Skipped means: another image of the same class
    takes its place (so batches keep their size and labels stay true), and it is counted. The count is shared by all
    workers of this process; each image counts once.

    Args:
        encoded: where the bytes come from.
        preprocessing: what is done to each picture; in place of the next five.
        size: ``(height, width)`` of all pictures; by default that of the first image.
        channels: 3 for RGB, 1 for grey.
        fit, resampling, background: what happens to images of another size, and to transparent ones, see
            :class:`~lightning_pfc.data.preprocessing.Preprocessing`.
        on_broken: ``"raise"`` or ``"skip"``.
        max_broken: share of the images that may be skipped, from 0 to 1. One more stops the run.
        max_pixels: bound of what is decoded, see :func:`~lightning_pfc.data.pictures.decoding.decode`.

    Raises:
        ValueError: an argument has none of the values above.
        BrokenImageError: ``size`` is not given and the first image is broken.
    """

    def __init__(
        self,
        encoded: EncodedImages,
        *,
        preprocessing: Preprocessing | None = None,
        size: tuple[int, int] | None = None,
        channels: int = 3,
        fit: Fit = "exact",
        resampling: Resampling = "bilinear",
        background: Background = "none",
        on_broken: OnBroken = "raise",
        max_broken: float = 0.01,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if on_broken not in ("raise", "skip"):
            raise ValueError(f"on_broken is {on_broken!r}; use 'raise' or 'skip'.")
        if not 0 <= max_broken <= 1:
            raise ValueError(f"max_broken is {max_broken}; it is a share of the images, from 0 to 1.")
        if not 1 <= max_pixels <= MOST_PIXELS:
            raise ValueError(f"max_pixels is {max_pixels}; it is 1 to {MOST_PIXELS}.")
        self.encoded = encoded
        self.on_broken = on_broken
        self.max_broken = max_broken
        self.max_pixels = max_pixels
        if preprocessing is None:
            known = Preprocessing(
                size=size or (1, 1), channels=channels, fit=fit, resampling=resampling, background=background
            )
            if size is None:
                first = decode(encoded.read(0), channels=channels, where=encoded.locate(0), max_pixels=max_pixels)
                known = known.changed(size=(first.shape[0], first.shape[1]))
            preprocessing = known
        self.preprocessing = preprocessing
        self._kept = KeptPictures(len(encoded), (*preprocessing.size, preprocessing.channels))
        # Shared memory, so that what workers mark is seen here; a mark is one byte, so no lock is needed.
        self._broken = torch.zeros(len(encoded) if on_broken == "skip" else 0, dtype=torch.uint8)
        self._broken.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every picture."""
        return self.preprocessing.image_shape

    @property
    def size(self) -> tuple[int, int]:
        """``(height, width)`` of every picture."""
        return self.preprocessing.size

    @property
    def channels(self) -> int:
        """3 for RGB, 1 for grey."""
        return self.preprocessing.channels

    @property
    def fit(self) -> Fit:
        """What happens to images of another size."""
        return self.preprocessing.fit

    @property
    def broken(self) -> npt.NDArray[np.int64]:
        """Positions of the images that were skipped so far, in increasing order."""
        return np.flatnonzero(self._broken.numpy())

    def __len__(self) -> int:
        return len(self.encoded)

    def made_by(self, preprocessing: Preprocessing) -> DecodedImages:
        """The same images, made in another way; what was skipped is counted anew."""
        return DecodedImages(
            self.encoded,
            preprocessing=preprocessing,
            on_broken=self.on_broken,
            max_broken=self.max_broken,
            max_pixels=self.max_pixels,
        )

    def fetch(self, index: npt.NDArray[np.int64]) -> Tensor:
        """(b,) positions to (b, C, H, W) uint8 images (channels last in memory).

        Raises:
            BrokenImageError: an image is broken and may not be skipped, or its class has no other one.
            TooManyBrokenImagesError: one more image than ``max_broken`` allows was skipped.
        """
        one = self._picture if self.on_broken == "raise" else self._picture_or_other
        batch = self._kept.fetch(index, one)
        return torch.from_numpy(batch).permute(0, 3, 1, 2)

    def read(self, place: int) -> bytes:
        """A picture for another decoder: its own bytes if they are a JPEG of the right size, else a bitmap of it.

        So nothing is left to that decoder in which it could differ: no way up, no kind of pixels, no fitting.

        Raises:
            BrokenImageError: the image has another size where ``fit`` is "exact", or is broken as far as is seen
                without decoding a plain JPEG.
        """
        data = self.encoded.read(place)
        if is_plain_jpeg(data, self.size):
            return data
        picture = self.preprocessing.picture(data, where=lambda: self.encoded.locate(place), max_pixels=self.max_pixels)
        return as_bitmap(picture)

    def _picture(self, place: int, room: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The picture, in ``room`` if it can be decoded there."""
        return self.preprocessing.picture(
            self.encoded.read(place),
            where=lambda: self.encoded.locate(place),
            max_pixels=self.max_pixels,
            out=room,
        )

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
