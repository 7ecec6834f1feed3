"""Encoded pictures of a request: looked at before they are decoded."""

from __future__ import annotations

import base64
import binascii

from lightning_pfc.data.errors import BrokenImageError
from lightning_pfc.data.pictures.decoding import dimensions
from lightning_pfc.data.pictures.headers import format_of
from lightning_pfc.service.errors import RequestError
from lightning_pfc.service.limits import Limits

FORMATS = ("JPEG", "PNG", "WEBP")


def from_base64(text: str, limits: Limits, where: str = "image") -> bytes:
    """The bytes of a picture in base64, with or without the beginning of a ``data:`` address.

    Raises:
        RequestError: 413 if it is too large, 422 if it is no base64.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    if len(text) > limits.image * 4 // 3 + 4:
        raise RequestError(413, f"{where} has more than {limits.image} bytes; send a smaller picture.")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(422, f"{where} is no base64 ({error}); send the file's bytes in base64.") from error


def check(data: bytes, limits: Limits, where: str = "image") -> bytes:
    """``data``, if it may be decoded: of a size and a format that the service takes.

    Raises:
        RequestError: 413 for too many bytes or pixels, 422 for another format.
    """
    if len(data) > limits.image:
        raise RequestError(
            413, f"{where} has {len(data)} bytes, at most {limits.image} are taken; send a smaller picture."
        )
    found = format_of(data)
    if found not in FORMATS:
        raise RequestError(422, f"{where} is no JPEG, PNG or WebP picture; convert it to one.")
    try:
        height, width = dimensions(data, where=where, max_pixels=1 << 27)
    except BrokenImageError as error:
        raise RequestError(422, str(error)) from error
    if height * width > limits.pixels:
        raise RequestError(
            413, f"{where} has {width} x {height} pixels, at most {limits.pixels} are taken; make it smaller."
        )
    return data
