"""Decoding one picture, strictly: what is damaged raises, and never turns into a grey or black picture."""

from __future__ import annotations

import functools
import importlib.util
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

# By name, so that Pillow knows these formats and never looks for others.
from PIL import BmpImagePlugin as _bmp  # noqa: F401
from PIL import GifImagePlugin as _gif  # noqa: F401
from PIL import Image
from PIL import JpegImagePlugin as _jpeg  # noqa: F401
from PIL import PngImagePlugin as _png  # noqa: F401
from PIL import PpmImagePlugin as _ppm  # noqa: F401
from PIL import TiffImagePlugin as _tiff  # noqa: F401
from PIL import WebPImagePlugin as _webp  # noqa: F401

from lightning_pfc.data.errors import BrokenImageError
from lightning_pfc.data.format_names import MAX_PIXELS, MOST_PIXELS
from lightning_pfc.data.pictures.headers import (
    FORMATS,
    JPEG_END,
    JPEG_START,
    JpegHeader,
    exif_orientation,
    format_of,
    jpeg_header,
    png_orientation,
    webp_size,
)
from lightning_pfc.data.pictures.modes import Background, is_transparent, to_bytes
from lightning_pfc.data.pictures.other_kinds import what_it_is

__all__ = ["FORMATS", "MAX_PIXELS", "MOST_PIXELS", "Decoded", "decode", "decode_whole", "dimensions", "is_plain_jpeg"]

_BUFFERED = 8  # a JPEG that must be held whole may have this many times as many
_SPACES = {1: "GRAY", 3: "RGB"}
_REDUCTIONS = (8, 4, 2, 1)
_Where = str | Callable[[], str]


class Decoded(NamedTuple):
    """A decoded picture.

    Attributes:
        pixels: ``(H, W, channels)`` uint8, the right way up.
        size: ``(height, width)`` of the whole picture, the right way up; ``pixels`` may be a fraction of it.
        orientation: of the EXIF tag, 1 to 8, that was followed.
    """

    pixels: npt.NDArray[np.uint8]
    size: tuple[int, int]
    orientation: int


def decode(
    data: bytes,
    *,
    channels: int = 3,
    where: _Where = "image",
    max_pixels: int = MAX_PIXELS,
    at_least: tuple[int, int] | None = None,
    background: Background = "none",
    out: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.uint8]:
    """Decodes a picture: JPEG, PNG, WebP, BMP, PPM (and PGM, PBM), TIFF or GIF, of several frames the first.

    It is turned the way up that its EXIF tag says, as browsers and OpenCV do. Deep, palette and other pixels become
    8 bits as :mod:`~lightning_pfc.data.pictures.modes` says.

    JPEG goes through simplejpeg (libjpeg-turbo) if that is installed, which is twice as fast as Pillow and refuses
    whatever the decoder complains about, where Pillow refuses truncated files only. Everything else goes through
    Pillow.

    Args:
        data: the encoded bytes.
        channels: 3 for RGB, 1 for grey.
        where: file and place of the image, for the error; called only then, if it is a function.
        max_pixels: bound of what is decoded. A larger JPEG is decoded at 1/2, 1/4 or 1/8 of its size, whichever is
            within the bound; anything else that is larger is refused before it is decoded.
        at_least: ``(height, width)``: JPEGs are decoded at the smallest of these fractions that is no smaller than
            this, which is faster.
        background: what is seen where a picture is transparent; "none" takes the colours that are stored there.
        out: contiguous ``(H, W, channels)`` uint8: a JPEG of just this size is decoded into it and it is returned; any
            other image is returned in memory of its own. If an error is raised, it holds anything.

    Returns:
        ``(H, W, channels)`` uint8.

    Raises:
        BrokenImageError: the bytes are not a whole image of these formats, its pixels are of a kind that is refused, or
            it has more than ``max_pixels`` pixels.
        ValueError: ``channels`` is neither 1 nor 3.
    """
    return decode_whole(
        data,
        channels=channels,
        where=where,
        max_pixels=max_pixels,
        at_least=at_least,
        background=background,
        out=out,
    ).pixels


def decode_whole(
    data: bytes,
    *,
    channels: int = 3,
    where: _Where = "image",
    max_pixels: int = MAX_PIXELS,
    at_least: tuple[int, int] | None = None,
    background: Background = "none",
    out: npt.NDArray[np.uint8] | None = None,
) -> Decoded:
    """As :func:`decode`, and what was known of the picture before it was turned and made smaller."""
    if channels not in _SPACES:
        raise ValueError(f"channels is {channels}; use 3 (RGB) or 1 (grey).")
    try:
        if data[:3] == JPEG_START:
            return _decode_jpeg(data, channels, max_pixels, at_least, out)
        return _decode_other(data, channels, max_pixels, background)
    except Exception as error:  # the decoders raise whatever they like: OSError, struct.error, SyntaxError, ...
        raise _broken(error, data, where, max_pixels) from error


def dimensions(data: bytes, *, where: _Where = "image", max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """``(height, width)`` of a picture the right way up, as its header says; the picture itself is not decoded.

    Args:
        data: the encoded bytes.
        where: file and place of the image, for the error; called only then, if it is a function.
        max_pixels: as for :func:`decode`.

    Raises:
        BrokenImageError: the bytes have no header of an image, or it announces more than ``max_pixels`` pixels.
    """
    try:
        if data[:3] == JPEG_START:
            header = jpeg_header(data)
            _reduction(header, max_pixels, None)
            return _turned((header.height, header.width), header.orientation)
        with _opened(data, max_pixels) as image:
            exif = image.info.get("exif")
            orientation = exif_orientation(exif) if isinstance(exif, bytes) else 1
            if exif is None and image.format == "PNG":
                orientation = png_orientation(data)
            return _turned((image.height, image.width), orientation)
    except Exception as error:
        raise _broken(error, data, where, max_pixels) from error


def has_transparency(data: bytes, *, where: _Where = "image", max_pixels: int = MAX_PIXELS) -> bool:
    """Whether a picture is transparent somewhere; a JPEG never is.

    Args:
        data: the encoded bytes.
        where: file and place of the image, for the error; called only then, if it is a function.
        max_pixels: as for :func:`decode`.

    Raises:
        BrokenImageError: as :func:`decode`.
    """
    if data[:3] == JPEG_START:
        return False
    try:
        with _opened(data, max_pixels) as image:
            return is_transparent(image)
    except Exception as error:
        raise _broken(error, data, where, max_pixels) from error


def is_plain_jpeg(data: bytes, size: tuple[int, int]) -> bool:
    """Whether a picture is a whole JPEG of this size, upright, of 8 bits and grey or coloured, as its header says."""
    if not data.startswith(JPEG_START) or data.rfind(JPEG_END) < 0:  # else other decoders may fill up with grey
        return False
    try:
        header = jpeg_header(data)
    except ValueError:
        return False
    upright = (header.height, header.width) == size and header.orientation == 1
    return upright and header.bits == 8 and header.components in (1, 3)


class _TooLarge(Exception):
    """An image whose header announces too many pixels."""


def _broken(error: Exception, data: bytes, where: _Where, max_pixels: int) -> BrokenImageError:
    place = where if isinstance(where, str) else where()
    if isinstance(error, _TooLarge):
        return BrokenImageError(f"{place}: the image has {error} pixels, more than max_pixels={max_pixels}")
    return BrokenImageError(f"{place}: the image cannot be decoded ({len(data)} bytes): {error}")


@functools.cache
def _simplejpeg() -> Any | None:
    if importlib.util.find_spec("simplejpeg") is None:
        return None
    import simplejpeg

    return simplejpeg


def _turned(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return (size[1], size[0]) if orientation >= 5 else size


def upright(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Pixels as stored, turned and mirrored as the EXIF tag says."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise _TooLarge(f"{width} x {height}")


# --- JPEG -------------------------------------------------------------------------------------------------------------


def _reduction(header: JpegHeader, max_pixels: int, at_least: tuple[int, int] | None) -> int:
    """By how much a JPEG is made smaller: as much as ``at_least`` allows, or as little as the bound needs."""
    height, width = header.height, header.width
    if header.bits != 8:
        raise ValueError(f"the JPEG has {header.bits} bits a sample; only those of 8 are read")
    least = (1, 1) if at_least is None else _turned(at_least, header.orientation)
    fits = [r for r in _REDUCTIONS if -(-height // r) * -(-width // r) <= max_pixels]
    if not fits or (header.buffered and height * width > _BUFFERED * max_pixels):
        raise _TooLarge(f"{width} x {height}")
    if at_least is None:
        return fits[-1]
    return next((r for r in fits if -(-height // r) >= least[0] and -(-width // r) >= least[1]), fits[-1])


def _decode_jpeg(
    data: bytes,
    channels: int,
    max_pixels: int,
    at_least: tuple[int, int] | None,
    out: npt.NDArray[np.uint8] | None,
) -> Decoded:
    header = jpeg_header(data)
    reduction = _reduction(header, max_pixels, at_least)
    size = (-(-header.height // reduction), -(-header.width // reduction))
    if (simplejpeg := _simplejpeg()) is None or header.components == 4:
        pixels = _jpeg_by_pillow(data, channels, reduction)
    elif out is not None and out.shape == (*size, channels) and header.orientation == reduction == 1:
        simplejpeg.decode_jpeg(data, _SPACES[channels], buffer=out)
        pixels = out
    else:
        least = {} if reduction == 1 else {"min_height": size[0], "min_width": size[1], "min_factor": 1}
        pixels = simplejpeg.decode_jpeg(data, _SPACES[channels], **least)
    if header.orientation != 1:
        pixels = upright(pixels, header.orientation)
    return Decoded(pixels, _turned((header.height, header.width), header.orientation), header.orientation)


def _jpeg_by_pillow(data: bytes, channels: int, reduction: int) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        if reduction > 1:
            image.draft(None, (image.width // reduction, image.height // reduction))
        return to_bytes(image, channels, data)


# --- everything else --------------------------------------------------------------------------------------------------


def _opened(data: bytes, max_pixels: int) -> Image.Image:
    kind = format_of(data)
    if kind is None:
        raise ValueError(f"no picture in one of the formats that are read ({', '.join(FORMATS)}){what_it_is(data)}")
    if kind == "WEBP" and (canvas := webp_size(data)) is not None:
        _check_pixels(*canvas, max_pixels)
    try:
        image = Image.open(io.BytesIO(data), formats=(kind,))
    except Image.UnidentifiedImageError:
        raise ValueError(f"the {kind} has a damaged header, or pixels of a kind that is not read") from None
    except Image.DecompressionBombError:
        raise _TooLarge("far too many") from None
    _check_pixels(image.height, image.width, max_pixels)
    return image


def _decode_other(data: bytes, channels: int, max_pixels: int, background: Background) -> Decoded:
    with _opened(data, max_pixels) as image:
        tags: Any = getattr(image, "tag_v2", None)
        tag = 1 if tags is None else tags.get(0x0112, 1)
        pixels = to_bytes(image, channels, data, background)
        exif = image.info.get("exif")
        if tags is not None:  # Pillow turns a TIFF itself
            orientation = tag if tag in range(1, 9) else 1
        else:
            orientation = exif_orientation(exif) if isinstance(exif, bytes) else 1
            pixels = upright(pixels, orientation)
    return Decoded(pixels, (pixels.shape[0], pixels.shape[1]), orientation)
