"""How pictures become the input of a model, until the data's own record of it is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import override

from lightning_pfc.data.formats.base import EncodedImages
from lightning_pfc.data.formats.decoded import DecodedImages, Fit

FITS = ("exact", "stretch", "crop")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Size, fit, resampling, colour order and normalisation of a model's pictures.

    Attributes:
        size: (height, width).
        channels: 3 for colours, 1 for grey.
        fit: what is done to images of another size, see :class:`~lightning_pfc.data.formats.DecodedImages`.
        resampling: how they are resized.
        color: order of the channels, ``"rgb"`` or ``"bgr"``.
        mean, std: of pixels in 0 to 255, one number or one per channel.
    """

    size: tuple[int, int]
    channels: int = 3
    fit: Fit = "exact"
    resampling: str = "bilinear"
    color: str = "rgb"
    mean: tuple[float, ...] = (127.5,)
    std: tuple[float, ...] = (127.5,)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, *self.size)

    def picture(self, data: bytes, *, where: str | Callable[[], str] = "image") -> npt.NDArray[np.uint8]:
        """Encoded bytes to (H, W, C) uint8, as training decodes and fits them."""
        place = where if isinstance(where, str) else where()
        return self._table(data, place).fetch(np.zeros(1, np.int64))[0].permute(1, 2, 0).numpy()

    def fitted(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """(h, w, C) uint8 to (H, W, C)."""
        return self._table(b"", "image")._fitted(pixels, 0)

    def tensor(self, pictures: Tensor) -> Tensor:
        """(b, C, H, W) uint8 to the float32 that the model takes."""
        floats = pictures.to(torch.float32)
        if self.color == "bgr":
            floats = floats.flip(1)
        scale = torch.tensor([1.0 / s for s in self.std]).view(-1, 1, 1)
        shift = torch.tensor([m / s for m, s in zip(self.mean, self.std, strict=True)]).view(-1, 1, 1)
        return floats.mul_(scale).sub_(shift)

    def changed(self, **words: Any) -> Preprocessing:
        """With other values in place of these; those that are None change nothing."""
        return replace(self, **{name: value for name, value in words.items() if value is not None})

    def to_config(self) -> dict[str, Any]:
        """Names, numbers and lists of them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_config(cls, record: Any) -> Preprocessing:
        """From what :meth:`to_config` gives; nothing in it is believed.

        Raises:
            ValueError: it is no such record.
        """
        if not isinstance(record, Mapping) or set(record) - {f.name for f in fields(cls)} or "size" not in record:
            raise ValueError(f"preprocessing must be a mapping with size: {record!r}")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
        }
        found = cls(**values)
        sizes = [found.channels, *found.size]
        if len(sizes) != 3 or not all(isinstance(n, int) and 0 < n < 1 << 14 for n in sizes) or found.fit not in FITS:
            raise ValueError(f"preprocessing holds a value out of range: {record!r}")
        return found

    def _table(self, data: bytes, place: str) -> DecodedImages:
        return DecodedImages(_One(data, place), size=self.size, channels=self.channels, fit=self.fit)


class _One(EncodedImages):
    def __init__(self, data: bytes, place: str) -> None:
        self.data, self.source = data, place
        self.labels, self.identities = np.zeros(1, np.int64), np.zeros(1, np.int64)

    @override
    def read(self, index: int) -> bytes:
        return self.data

    @override
    def locate(self, index: int) -> str:
        return self.source
