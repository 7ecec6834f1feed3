"""Contact sheets: many small pictures on one page, to be looked at."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from lightning_pfc.data.errors import FormatError
from lightning_pfc.data.preprocessing import Preprocessing
from lightning_pfc.storage.whole_files import write_whole


def thumbnail(read: Callable[[], bytes], edge: int) -> Image.Image:
    """A square of ``edge`` pixels from an encoded picture; grey where ``read`` or decoding raises a FormatError."""
    try:
        pixels = Preprocessing(size=(edge, edge), fit="crop").picture(read())
    except FormatError:
        pixels = np.full((edge, edge, 3), 200, np.uint8)
    return Image.fromarray(pixels)


def save_sheet(sheet: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Write a sheet, whole or not at all, in the format of the suffix; PNG for a suffix that Pillow does not know."""
    final = Path(path)
    kind = Image.registered_extensions().get(final.suffix.lower(), "PNG")
    with write_whole(final) as file:
        sheet.save(file, kind)
    return final
