"""The one way from an encoded picture to what a model sees, in training and wherever it is judged or used."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from lightning_pfc.data.errors import BrokenImageError
from lightning_pfc.data.pictures.decoding import MAX_PIXELS, decode_whole
from lightning_pfc.data.pictures.modes import Background

if TYPE_CHECKING:  # a service of an ONNX file does without torch, which is most of what it would hold in memory
    from torch import Tensor

Fit = Literal["exact", "stretch", "crop", "pad"]
Resampling = Literal["bilinear", "bicubic", "lanczos", "box", "nearest"]
Color = Literal["rgb", "bgr"]
Flip = Literal["none", "sum"]

METADATA_KEY = "preprocessing"
"""Under this name a checkpoint's hyper-parameters, and an ONNX file's metadata (as JSON), hold the record."""

MAX_EDGE = 1 << 14
_CHOICES = {"fit": Fit, "resampling": Resampling, "background": Background, "color": Color, "flip": Flip}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What is done to a picture before a model sees it: a record that travels with the model.

    The data module makes it from its source, :class:`~lightning_pfc.PartialFCModule` keeps it in its hyper-parameters,
    and everything that judges, exports or uses the model follows it unless the user says otherwise. The steps:

    1. decoded, the way up that its EXIF tag says, to 8 bits (:func:`~lightning_pfc.data.pictures.decoding.decode`);
    2. fitted to ``size``: an image of just that size is left alone;
    3. floats: ``(pixel - mean) / std``, channels in the order of ``color``.

    Attributes:
        size: ``(height, width)``.
        channels: 3 for colours, 1 for grey.
        fit: images of another size: ``"exact"`` refuses them, ``"stretch"`` resizes each side, ``"crop"`` cuts out the
            largest middle of the right shape and resizes it, ``"pad"`` resizes the whole and fills what is left at two
            sides with ``mean``, which a model sees as zero: for what has no middle, such as signatures and leaves.
        resampling: how they are resized, by Pillow: ``"bilinear"``, ``"bicubic"``, ``"lanczos"``, ``"box"``,
            ``"nearest"``.
        background: what is seen where a picture is transparent, ``"white"`` or ``"black"``; ``"none"`` leaves
            transparency out and takes the colours that are stored below it, as OpenCV does.
        color: order of the channels.
        mean, std: of pixels in 0 to 255, one number or one per channel; 127.5 and 127.5 give [-1, 1].
        flip: ``"sum"`` judges a picture by the sum of its embedding and that of its mirror image, ``"none"`` by its
            own. A model that was trained on mirrored pictures is judged by the sum, as InsightFace does.

    Raises:
        ValueError: for a value that is none of these; names it.
    """

    size: tuple[int, int]
    channels: int = 3
    fit: Fit = "exact"
    resampling: Resampling = "bilinear"
    background: Background = "none"
    color: Color = "rgb"
    mean: tuple[float, ...] = (127.5,)
    std: tuple[float, ...] = (127.5,)
    flip: Flip = "none"

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            if (value := getattr(self, name)) not in get_args(kind):
                known = ", ".join(repr(choice) for choice in get_args(kind))
                raise ValueError(f"{name} is {value!r}; use one of {known}.")
        size = self.size
        if isinstance(size, str) or not isinstance(size, Sequence) or len(size) != 2 or not all(map(_is_edge, size)):
            raise ValueError(f"size is {size!r}; it is (height, width), of 1 to {MAX_EDGE} pixels each.")
        object.__setattr__(self, "size", (int(size[0]), int(size[1])))
        if isinstance(self.channels, bool) or self.channels not in (1, 3):
            raise ValueError(f"channels is {self.channels!r}; use 3 (colours) or 1 (grey).")
        for name in ("mean", "std"):
            object.__setattr__(self, name, self._numbers(name, getattr(self, name)))

    def _numbers(self, name: str, value: Any) -> tuple[float, ...]:
        values = [value] if isinstance(value, int | float) else value
        if isinstance(values, str) or not isinstance(values, Sequence) or len(values) not in (1, self.channels):
            raise ValueError(f"{name} is {value!r}; give one number, or one for each of the {self.channels} channels.")
        if not all(isinstance(v, int | float) and math.isfinite(v) and (name == "mean" or v > 0) for v in values):
            raise ValueError(f"{name} is {value!r}; its numbers are finite{', and above 0' if name == 'std' else ''}.")
        numbers = tuple(float(v) for v in values)
        return numbers[:1] if len(set(numbers)) == 1 else numbers

    # --- the steps ----------------------------------------------------------------------------------------------------

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every picture."""
        return (self.channels, *self.size)

    def picture(
        self,
        data: bytes,
        *,
        where: str | Callable[[], str] = "image",
        max_pixels: int = MAX_PIXELS,
        out: npt.NDArray[np.uint8] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Decodes and fits one picture.

        Args:
            data: the encoded bytes.
            where: file and place of the image, for the error; called only then, if it is a function.
            max_pixels: bound of what is decoded, see :func:`~lightning_pfc.data.pictures.decoding.decode`.
            out: contiguous ``(H, W, C)`` uint8 where the result may be put.

        Returns:
            ``(H, W, C)`` uint8 RGB or grey: ``out``, or memory of its own.

        Raises:
            BrokenImageError: the picture is broken or too large, or of another size where ``fit`` is ``"exact"``.
        """
        pixels, whole, _ = decode_whole(
            data,
            channels=self.channels,
            where=where,
            max_pixels=max_pixels,
            at_least=None if self.fit == "exact" else self.size,
            background=self.background,
            out=out,
        )
        if self.fit == "exact" and whole != self.size:
            raise self.other_size(where, whole)
        return pixels if pixels.shape[:2] == self.size else self.fitted(pixels)

    def pixels(self, decoded: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """A decoded picture, ``(h, w, C)`` uint8, as :meth:`picture` fits it: ``(H, W, C)`` uint8.

        Raises:
            ValueError: these are no such pixels.
            BrokenImageError: they are of another size, and ``fit`` is ``"exact"``.
        """
        if decoded.dtype != np.uint8 or decoded.ndim != 3 or decoded.shape[2] != self.channels:
            raise ValueError(f"pixels are {decoded.dtype} {decoded.shape}; give uint8 (H, W, {self.channels}).")
        if decoded.shape[:2] == self.size:
            return decoded
        if self.fit == "exact":
            raise self.other_size("image", (decoded.shape[0], decoded.shape[1]))
        return self.fitted(decoded)

    def fitted(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """``(h, w, C)`` uint8 to ``(H, W, C)``: stretched, its largest middle of that shape, or whole and padded."""
        if self.fit == "pad":
            return self._padded(pixels)
        height, width = self.size
        have_height, have_width = pixels.shape[:2]
        box = (0.0, 0.0, float(have_width), float(have_height))
        if self.fit == "crop":
            # In whole numbers, so that the side that is taken whole is taken whole to the last digit.
            if have_height * width <= have_width * height:
                side = (have_width - have_height * width / height) / 2
                box = (side, 0.0, have_width - side, float(have_height))
            else:
                side = (have_height - have_width * height / width) / 2
                box = (0.0, side, float(have_width), have_height - side)
        return self._resized(pixels, self.size, box)

    def _padded(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        (height, width), (have_height, have_width) = self.size, pixels.shape[:2]
        scale = min(height / have_height, width / have_width)
        inner = (min(height, max(1, round(have_height * scale))), min(width, max(1, round(have_width * scale))))
        top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
        fill = np.clip(np.rint(self.mean), 0, 255).astype(np.uint8)
        canvas = np.empty((height, width, self.channels), np.uint8)
        canvas[:] = fill[::-1] if self.color == "bgr" else fill
        whole = (0.0, 0.0, float(have_width), float(have_height))
        canvas[top : top + inner[0], left : left + inner[1]] = self._resized(pixels, inner, whole)
        return canvas

    def _resized(
        self, pixels: npt.NDArray[np.uint8], size: tuple[int, int], box: tuple[float, float, float, float]
    ) -> npt.NDArray[np.uint8]:
        picture = Image.fromarray(pixels if self.channels == 3 else pixels[:, :, 0])
        kind = Image.Resampling[self.resampling.upper()]
        return np.asarray(picture.resize(size[::-1], kind, box=box)).reshape(*size, self.channels)

    def tensor(self, pictures: Tensor) -> Tensor:
        """(b, C, H, W) uint8 pictures to the (b, C, H, W) float32 that the model sees, on the same device."""
        floats = pictures.float()
        if self.color == "bgr":
            floats = floats.flip(1)
        scale, shift = self._scale_and_shift()
        return floats.mul_(_per_channel(scale, floats)).sub_(_per_channel(shift, floats))

    def array(self, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """:meth:`tensor` without torch, to the bit: (b, H, W, C) uint8 to (b, C, H, W) float32, contiguous."""
        planes = pictures.transpose(0, 3, 1, 2)
        floats = np.empty(planes.shape, np.float32)
        floats[:] = planes[:, ::-1] if self.color == "bgr" else planes
        scale, shift = self._scale_and_shift()
        floats *= scale
        floats -= shift
        return floats

    def _scale_and_shift(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """What a pixel is multiplied by, and what is then taken off: (1 or C, 1, 1) each."""
        mean, std = np.broadcast_arrays(self.mean, self.std)
        scale, shift = (1.0 / std).astype(np.float32), (mean / std).astype(np.float32)
        return scale.reshape(-1, 1, 1), shift.reshape(-1, 1, 1)

    def __call__(self, data: bytes | npt.NDArray[np.uint8], *, max_pixels: int = MAX_PIXELS) -> Tensor:
        """What the model sees of one picture: encoded bytes, or ``(h, w, C)`` uint8 pixels, to (1, C, H, W) float32.

        Raises:
            BrokenImageError: as :meth:`picture`.
        """
        import torch

        if isinstance(data, bytes | bytearray | memoryview):
            pixels = self.picture(bytes(data), max_pixels=max_pixels)
        else:
            pixels = self.pixels(np.asarray(data))
        return self.tensor(torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None])

    def embed(self, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Embeddings of (b, C, H, W) images as the model is judged: (b, D), with ``flip="sum"`` in float64.

        Args:
            network: (b, C, H, W) to (b, D).
            images: floats or, for a network that takes them, pictures.
        """
        embeddings = network(images)
        return embeddings if self.flip == "none" else embeddings.double() + network(images.flip(-1)).double()

    def other_size(self, where: str | Callable[[], str], have: tuple[int, int]) -> BrokenImageError:
        """The error for a picture of another size, where ``fit`` is "exact"."""
        return BrokenImageError(
            f"{where if isinstance(where, str) else where()}: the image has {have[1]} x {have[0]} pixels instead of "
            f"{self.size[1]} x {self.size[0]}. "
            "Align the images (`pfc-data align`), or choose fit='stretch', 'crop' or 'pad' "
            "(training: data.source.fit=crop; pfc-eval: settings.fit=crop)."
        )

    # --- the record ---------------------------------------------------------------------------------------------------

    def to_config(self) -> dict[str, Any]:
        """Names, numbers and lists of them; :meth:`from_config` turns it back.

        A background of "none" is left out: records, and digests of models, of before there was one stay what they were.
        """
        record = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        if self.background == "none":
            del record["background"]
        return record

    @classmethod
    def from_config(cls, record: Any) -> Preprocessing:
        """From what :meth:`to_config` gave, perhaps by way of a file: nothing in it is believed.

        Raises:
            ValueError: it is no such record, or holds a value that is none.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(record, Mapping) or "size" not in record or not set(record) <= names:
            found = sorted(map(str, record)) if isinstance(record, Mapping) else type(record).__name__
            raise ValueError(f"preprocessing must be a mapping with size, and of {', '.join(sorted(names))}: {found}.")
        try:
            return cls(**record)
        except TypeError as error:
            raise ValueError(f"preprocessing holds a value of another kind: {error}.") from error

    def same_pictures(self, other: Preprocessing) -> bool:
        """Whether ``other`` makes the same uint8 pictures of all files; ``mean`` and ``color`` fill what is padded."""
        names = ["size", "channels", "fit", "resampling", "background"]
        names += ["mean", "color"] if self.fit == "pad" else []
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def difference(self, other: Preprocessing) -> str:
        """A sentence that names what ``other`` does otherwise, and says that it is in force."""
        names = [field.name for field in fields(self) if getattr(self, field.name) != getattr(other, field.name)]
        mine, theirs = (", ".join(f"{name}={getattr(record, name)}" for name in names) for record in (self, other))
        return f"The model was trained on pictures made ready with {mine}; the data say {theirs}, which is in force."

    def changed(self, **words: Any) -> Preprocessing:
        """With the user's words in place of the record's; those that are None leave it as it is.

        Raises:
            ValueError: for a name that does not exist, or a value that is none.
        """
        names = {field.name for field in fields(self)}
        if unknown := sorted(set(words) - names):
            raise ValueError(f"preprocessing has no {unknown[0]!r}; there are {', '.join(sorted(names))}.")
        return replace(self, **{name: value for name, value in words.items() if value is not None})


def _is_edge(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_EDGE


def _per_channel(numbers: npt.NDArray[np.float32], like: Tensor) -> float | Tensor:
    return numbers.item() if numbers.size == 1 else like.new_tensor(numbers)


def as_bitmap(pixels: npt.NDArray[np.uint8]) -> bytes:
    """``(H, W, C)`` uint8 as a PPM or PGM file: for another decoder, which then has nothing to decide."""
    out = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).save(out, "PPM")
    return out.getvalue()
