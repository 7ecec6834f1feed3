"""Whatever people call a picture, made into what the model was trained on, by the code that training uses."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from lightning_pfc.data.errors import BrokenImageError
from lightning_pfc.data.formats.folder import read_image_file
from lightning_pfc.data.pictures.decoding import MAX_PIXELS, upright
from lightning_pfc.data.pictures.modes import Background, RefusedPixels, to_bytes
from lightning_pfc.data.preprocessing import Preprocessing

if TYPE_CHECKING:
    from lightning_pfc.faces import FaceCutter

Picture: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.uint8]
"""A path, the encoded bytes, a PIL image, or a uint8 array (H, W), (H, W, 1) or (H, W, 3) in the order RGB."""

Pixels = npt.NDArray[np.uint8]

_ORIENTATION = 0x0112  # in EXIF


def one_by_one(pictures: Picture | Iterable[Picture]) -> Iterator[Picture]:
    """A single picture, or each of several (also a generator, or an array (N, H, W, C))."""
    if isinstance(pictures, str | os.PathLike | bytes | bytearray | memoryview | Image.Image):
        yield cast("Picture", pictures)
    elif isinstance(pictures, np.ndarray) and (pictures.ndim < 4):
        yield pictures
    elif not isinstance(pictures, Iterable) or isinstance(pictures, Mapping) or hasattr(pictures, "read"):
        raise _no_picture(pictures)  # a file gives lines, a mapping its keys
    else:
        yield from cast("Iterable[Picture]", pictures)


def prepare(picture: Picture, preprocessing: Preprocessing, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """(H, W, C) uint8: the picture as training would have it, byte for byte.

    Encoded bytes, files, and PIL images that were opened but not used yet take the very path of training. Arrays and
    other PIL images have been decoded by somebody else; they are turned as their EXIF tag says, if they still have
    one, and fitted as training does.

    Args:
        picture: see :data:`Picture`.
        preprocessing: of the model.
        max_pixels: bound of what is decoded, see :func:`~lightning_pfc.data.pictures.decoding.decode`.

    Raises:
        BrokenImageError: the picture is damaged, or has another size and ``fit`` is ``"exact"``.
        FormatError: the file cannot be read.
        TypeError, ValueError: it is no picture.
    """
    if isinstance(picture, str | os.PathLike):
        return preprocessing.picture(read_image_file(Path(picture)), where=os.fspath(picture), max_pixels=max_pixels)
    if isinstance(picture, bytes | bytearray | memoryview):
        return preprocessing.picture(bytes(picture), max_pixels=max_pixels)
    if isinstance(picture, Image.Image) and (data := _not_yet_decoded(picture)) is not None:
        where = str(getattr(picture, "filename", "") or "image")
        return preprocessing.picture(data, where=where, max_pixels=max_pixels)
    pixels = pixels_of(picture, preprocessing.channels, preprocessing.background)
    if pixels.shape[:2] == preprocessing.size:
        return pixels
    if preprocessing.fit == "exact":
        raise preprocessing.other_size("image", (pixels.shape[0], pixels.shape[1]))
    return preprocessing.fitted(pixels)


def cut_out(photo: Picture, cutter: FaceCutter) -> Pixels:
    """(size, size, 3) uint8: the face in a photo, aligned.

    Raises:
        NoFaceError: there is none.
        BrokenImageError, FormatError, TypeError, ValueError: as :func:`prepare`.
    """
    if isinstance(photo, str | os.PathLike):
        return cutter.file(photo)[0].pixels
    if isinstance(photo, bytes | bytearray | memoryview):
        return cutter.photo(bytes(photo))[0].pixels
    if isinstance(photo, Image.Image) and (data := _not_yet_decoded(photo)) is not None:
        return cutter.photo(data, where=str(getattr(photo, "filename", "") or "image"))[0].pixels
    return cutter.pixels(pixels_of(photo, 3))[0].pixels


def _not_yet_decoded(image: Image.Image) -> bytes | None:
    """The file of an image that ``PIL.Image.open`` gave and nobody has touched."""
    file = getattr(image, "fp", None)
    if file is None or not getattr(image, "tile", None) or not isinstance(image, ImageFile.ImageFile):
        return None
    if image.tell():  # somebody has turned to another of its pages
        return None
    try:
        place = file.tell()
        file.seek(0)
        data = file.read()
        file.seek(place)
    except (OSError, ValueError):  # closed, or a stream
        return None
    return bytes(data)


def pixels_of(picture: Any, channels: int, background: Background = "none") -> Pixels:
    """A decoded picture as (H, W, channels) uint8.

    Raises:
        BrokenImageError: its pixels are of a kind that no file may have either.
        TypeError, ValueError: it is no picture; names what it is.
    """
    if isinstance(picture, Image.Image):
        picture.load()  # a TIFF is turned by this
        orientation = picture.getexif().get(_ORIENTATION, 1)
        try:
            return upright(to_bytes(picture, channels, background=background), orientation)
        except RefusedPixels as error:
            raise BrokenImageError(f"{getattr(picture, 'filename', '') or 'image'}: {error}") from error
    array = _array(picture)
    if array.shape[2] == channels:
        return np.ascontiguousarray(array)
    if channels == 3:
        return np.repeat(array, 3, axis=2)
    return np.asarray(Image.fromarray(array).convert("L"))[:, :, None]


def _array(picture: Any) -> Pixels:
    if not isinstance(picture, np.ndarray):
        raise _no_picture(picture)
    array = picture[:, :, None] if picture.ndim == 2 else picture
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3) or 0 in array.shape:
        raise ValueError(
            f"an array of {picture.dtype} {picture.shape} is no picture: give uint8 (H, W), (H, W, 1) or (H, W, 3), RGB"
        )
    return array


def _no_picture(thing: Any) -> TypeError:
    return TypeError(
        f"a picture is a path, bytes, a PIL image or a uint8 array (H, W, C), not {type(thing).__name__}"
        + ("; give what its read() returns" if hasattr(thing, "read") else "")
    )
