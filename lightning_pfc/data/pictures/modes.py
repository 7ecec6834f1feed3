"""From the kinds of pixels that picture files hold to 8 bits, grey or RGB: converted rightly, or refused by name.

=================================  ===================================================================================
1 bit, grey to 8 bits, palettes    as they are; grey of 1, 2 and 4 bits is spread over 0 to 255
8-bit RGB, with or without alpha   as it is; alpha is left out, the colours below it stay, or laid over a
                                   background
16-bit grey and colours            the high byte, as OpenCV takes it (of 12-bit grey the high 8 bits)
CMYK, YCbCr                        to RGB
32-bit, signed and floating-point  refused: nothing says which of their values is black and which is white
CIE LAB                            refused: its white point is not known
=================================  ===================================================================================
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

Background = Literal["none", "white", "black"]
"""What transparent pictures are laid over; "none" leaves transparency out."""

_SHADES: dict[Background, int] = {"white": 255, "black": 0}
_PLAIN = frozenset(("1", "L", "P", "LA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"))
_BY_WAY_OF = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}
_DEEP = frozenset(("I;16", "I;16L", "I;16B", "I;16N"))
_REFUSED = {
    "I": "32-bit or signed integers, of which nothing says which is white",
    "F": "floating-point numbers, of which nothing says which is white",
    "LAB": "colours in CIE LAB, whose white point is not known",
}
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_SIGNED = 2


class RefusedPixels(ValueError):
    """Pixels of a kind that has no one way to 8 bits; the message names it."""


def to_bytes(
    image: Image.Image, channels: int, data: bytes = b"", background: Background = "none"
) -> npt.NDArray[np.uint8]:
    """The pixels of an opened image.

    Args:
        image: of Pillow; it may not be loaded yet.
        channels: 3 for RGB, 1 for grey.
        data: the file it was opened from; of an image that is loaded Pillow has made what it makes of it.
        background: what is seen where the image is transparent; of 16-bit grey it is left out.

    Returns:
        ``(H, W, channels)`` uint8, as stored: not turned.

    Raises:
        RefusedPixels: see the table above.
    """
    mode = "L" if channels == 1 else "RGB"
    tags: Any = getattr(image, "tag_v2", {})
    if _SIGNED in tags.get(_SAMPLE_FORMAT, ()):  # of 8 bits, which Pillow takes for unsigned
        raise _refused(image, _REFUSED["I"])
    if (deep := _deep(image, data)) is not None:
        if deep.ndim == 2 and channels == 3:
            return np.repeat(deep[:, :, None], 3, axis=2)
        if deep.ndim == 3 and channels == 1:
            deep = np.asarray(Image.fromarray(deep).convert("L"))
        return deep.reshape(*deep.shape[:2], channels)
    if image.mode in _REFUSED or image.mode not in _PLAIN | set(_BY_WAY_OF):
        what = _REFUSED.get(image.mode, f"of the kind {image.mode!r}, which is not known")
        raise _refused(image, what)
    if image.mode in _BY_WAY_OF:
        image = image.convert(_BY_WAY_OF[image.mode])
    if image.has_transparency_data:
        image = _opaque(image, background)
    pixels = np.array(image.convert(mode), dtype=np.uint8)
    return pixels.reshape(*pixels.shape[:2], channels)


def is_transparent(image: Image.Image) -> bool:
    """Whether anything of an opened image, of a kind that is not refused, is not wholly opaque."""
    if image.mode in _DEEP or image.mode in _REFUSED or not image.has_transparency_data:
        return False
    return int(np.asarray(image.convert("RGBA"))[:, :, 3].min()) < 255


def _opaque(image: Image.Image, background: Background) -> Image.Image:
    """The image over a background, or with the colours that it has below its transparency."""
    if background == "none":
        if image.mode == "P":
            image = image.copy()
            image.info.pop("transparency", None)  # which Pillow warns of
        return image
    pixels = np.asarray(image.convert("RGBA"), dtype=np.uint16)
    colours, alpha = pixels[:, :, :3], pixels[:, :, 3:]
    over = (colours * alpha + _SHADES[background] * (255 - alpha) + 127) // 255
    return Image.fromarray(over.astype(np.uint8))


def _refused(image: Image.Image, what: str) -> RefusedPixels:
    name = image.format or "picture"  # a copy has no format
    return RefusedPixels(f"the {name}'s pixels are {what}; convert it to 8 or 16 bits of grey or RGB")


def _deep(image: Image.Image, data: bytes) -> npt.NDArray[np.uint8] | None:
    """The high bytes of pixels that Pillow would cut off at 255, or round: ``(H, W)`` or ``(H, W, 3)``."""
    if image.mode in _DEEP:
        tags: Any = getattr(image, "tag_v2", {})  # before Pillow turns the picture and forgets them
        bits, white_is_zero = int(tags.get(_BITS, (16,))[0]), tags.get(_PHOTOMETRIC) == 0
        high: npt.NDArray[np.uint8] = (np.asarray(image) >> max(0, bits - 8)).astype(np.uint8)
        return 255 - high if white_is_zero else high
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits in 32
        return (np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8)
    if image.format == "PPM" and image.mode == "RGB" and len(image.tile) == 1:
        tile: Any = image.tile[0]
        wide = tile[0] == "ppm" and isinstance(tile[3], tuple) and tile[3][-1] == 0xFFFF
        count = image.width * image.height * 3
        if wide and len(data) >= tile[2] + 2 * count:
            words = np.frombuffer(data, ">u2", count, tile[2])
            return (words >> 8).astype(np.uint8).reshape(image.height, image.width, 3)
    return None
