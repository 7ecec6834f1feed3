"""Small images of enrolled pictures, to show to people."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

EDGE = 112


def preview_of(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A JPEG, at most :data:`EDGE` wide and high, of what the network saw: (H, W, C) uint8."""
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    image.thumbnail((EDGE, EDGE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()
