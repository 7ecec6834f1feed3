"""Digests of pictures: equal for equal files, and for equal pixels."""

from __future__ import annotations

import hashlib

import numpy as np

from lightning_pfc.data.pictures.decoding import Decoded

DIGEST_BYTES = 16  # two different pictures of a billion share one with probability 1e-21


def digest_encoded(data: bytes) -> bytes:
    """Of a picture's file."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def digest_pixels(found: Decoded) -> bytes:
    """Of a picture's pixels and their size."""
    pixels = np.ascontiguousarray(found.pixels)
    return hashlib.blake2b(pixels.data, digest_size=DIGEST_BYTES, salt=repr(found.size).encode()[:16]).digest()
