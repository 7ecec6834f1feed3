"""Decoding one image, strictly: what is damaged raises, and never turns into a grey or black picture."""

from __future__ import annotations

import functools
import importlib.util
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lightning_pfc.data.formats.errors import BrokenImageError

MAX_PIXELS = 1 << 24  # an image of 4096 x 4096; a damaged header must not fill the memory
JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_MODES = {1: "L", 3: "RGB"}
_SPACES = {1: "GRAY", 3: "RGB"}


def decode(
    data: bytes,
    *,
    channels: int = 3,
    where: str | Callable[[], str] = "image",
    max_pixels: int = MAX_PIXELS,
    at_least: tuple[int, int] | None = None,
    out: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.uint8]:
    """Decodes an image.

    JPEG goes through simplejpeg (libjpeg-turbo) if that is installed, which is twice as fast as Pillow and refuses
    whatever the decoder complains about, where Pillow refuses truncated files only. Everything else goes through
    Pillow. An orientation tag is not applied.

    Args:
        data: the encoded bytes; any format that Pillow reads.
        channels: 3 for RGB, 1 for grey.
        where: file and place of the image, for the error; called only then, if it is a function.
        max_pixels: larger images are refused before they are decoded.
        at_least: ``(height, width)``: large JPEGs may be decoded at a fraction of their size (1/2 to 1/8) that is no
            smaller than this, which is faster.
        out: contiguous ``(H, W, channels)`` uint8: a JPEG of just this size is decoded into it and it is returned; any
            other image is returned in memory of its own. If an error is raised, it holds anything.

    Returns:
        ``(H, W, channels)`` uint8.

    Raises:
        BrokenImageError: the bytes are not a whole image, or it has more than ``max_pixels`` pixels.
        ValueError: ``channels`` is neither 1 nor 3.
    """
    if channels not in _MODES:
        raise ValueError(f"channels is {channels}; use 3 (RGB) or 1 (grey).")
    try:
        if data[:3] == JPEG_START and (simplejpeg := _simplejpeg()) is not None:
            return _decode_simplejpeg(simplejpeg, data, channels, max_pixels, at_least, out)
        return _decode_pillow(data, channels, max_pixels)
    except Exception as error:  # the decoders raise whatever they like: OSError, struct.error, SyntaxError, ...
        raise _broken(error, data, where, max_pixels) from error


def dimensions(
    data: bytes, *, where: str | Callable[[], str] = "image", max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """``(height, width)`` as the header of an image says; the image itself is not decoded.

    Args:
        data: the encoded bytes; any format that Pillow reads.
        where: file and place of the image, for the error; called only then, if it is a function.
        max_pixels: larger images are refused.

    Raises:
        BrokenImageError: the bytes have no header of an image, or it announces more than ``max_pixels`` pixels.
    """
    try:
        if data[:3] == JPEG_START and (simplejpeg := _simplejpeg()) is not None:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        else:
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
        _check_pixels(height, width, max_pixels)
    except Exception as error:
        raise _broken(error, data, where, max_pixels) from error
    return height, width


def _broken(error: Exception, data: bytes, where: str | Callable[[], str], max_pixels: int) -> BrokenImageError:
    if isinstance(error, _TooLarge):
        return BrokenImageError(f"{_text(where)}: the image has {error} pixels, more than max_pixels={max_pixels}")
    return BrokenImageError(f"{_text(where)}: the image cannot be decoded ({len(data)} bytes): {error}")


def _text(where: str | Callable[[], str]) -> str:
    return where if isinstance(where, str) else where()


class _TooLarge(Exception):
    """An image whose header announces too many pixels."""


@functools.cache
def _simplejpeg() -> Any | None:
    if importlib.util.find_spec("simplejpeg") is None:
        return None
    import simplejpeg

    return simplejpeg


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise _TooLarge(f"{width} x {height}")


def _decode_simplejpeg(
    simplejpeg: Any,
    data: bytes,
    channels: int,
    max_pixels: int,
    at_least: tuple[int, int] | None,
    out: npt.NDArray[np.uint8] | None,
) -> npt.NDArray[np.uint8]:
    height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    _check_pixels(height, width, max_pixels)
    if space in ("CMYK", "YCCK"):
        return _decode_pillow(data, channels, max_pixels)
    if out is not None and out.shape == (height, width, channels) and at_least in (None, (height, width)):
        simplejpeg.decode_jpeg(data, _SPACES[channels], buffer=out)
        return out
    size = {} if at_least is None else {"min_height": at_least[0], "min_width": at_least[1], "min_factor": 1}
    image: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, _SPACES[channels], **size)
    return image


def _decode_pillow(data: bytes, channels: int, max_pixels: int) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        _check_pixels(image.height, image.width, max_pixels)
        pixels = np.array(image.convert(_MODES[channels]), dtype=np.uint8)
    return pixels.reshape(*pixels.shape[:2], channels)
