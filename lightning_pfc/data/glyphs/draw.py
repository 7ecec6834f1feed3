"""Draws the characters of one typeface. Runs as a script of its own, so it imports nothing but numpy and Pillow.

The parent (``store.py``) starts several of these processes and sends each a list of parts on standard input as JSON;
a process answers with one line per finished part. Starting a script by its path, instead of ``multiprocessing``, works
the same under every start method, inside any other launcher, and without a ``__main__`` guard in the user's own script.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# Code points that no font may draw: noncharacters and one that Unicode never assigned. What comes out is the font's
# .notdef.
_UNDRAWABLE = (0x0378, 0xFFFE, 0x10FFFF)


def draw_characters(
    path: str | Path, face: int, codepoints: NDArray[np.uint32], size: int, em: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    """Draw characters white on black, each centred by the box of its ink.

    A font's character map says what a font claims, not what it draws: only what left ink, and other ink than the font's
    replacement glyph, is kept.

    Args:
        path: font file (TrueType, OpenType or a collection).
        face: number of the face inside a collection, else 0.
        codepoints: (n,) Unicode code points to try.
        size: edge of the square image in pixels.
        em: font size in pixels.

    Returns:
        The code points that were drawn, (k,) uint32, and their images, (k, size, size) uint8.
    """
    font = ImageFont.truetype(str(path), em, index=face, layout_engine=ImageFont.Layout.BASIC)
    edge = max(2 * em, size)
    canvas = Image.new("L", (edge, edge))
    pen = ImageDraw.Draw(canvas)

    def draw(codepoint: int) -> NDArray[np.uint8] | None:
        canvas.paste(0, (0, 0, edge, edge))
        pen.text((edge // 2, edge // 2), chr(codepoint), fill=255, font=font, anchor="mm")
        box = canvas.getbbox()
        if box is None:
            return None
        ink = canvas.crop(box)
        if max(ink.size) > size:
            ink.thumbnail((size, size))
        image = np.zeros((size, size), dtype=np.uint8)
        top, left = (size - ink.height) // 2, (size - ink.width) // 2
        image[top : top + ink.height, left : left + ink.width] = np.asarray(ink)
        return image

    undrawable = {image.tobytes() for c in _UNDRAWABLE if (image := draw(c)) is not None}
    kept: list[int] = []
    images: list[NDArray[np.uint8]] = []
    for codepoint in codepoints.tolist():
        image = draw(codepoint)
        if image is not None and image.tobytes() not in undrawable:
            kept.append(codepoint)
            images.append(image)
    stacked = np.stack(images) if images else np.zeros((0, size, size), dtype=np.uint8)
    return np.asarray(kept, dtype=np.uint32), stacked


def write_part(target: Path, codepoints: NDArray[np.uint32], images: NDArray[np.uint8]) -> None:
    """Write one part so that a reader sees all of it or nothing: under a name of our own first, then renamed."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, codepoints=codepoints, images=images)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def main() -> None:
    """Draw the parts described on standard input, one JSON object a line; name each on standard output."""
    for line in sys.stdin:
        part = json.loads(line)
        codepoints = np.arange(part["start"], part["stop"], dtype=np.uint32)
        write_part(
            Path(part["target"]), *draw_characters(part["path"], part["face"], codepoints, part["size"], part["em"])
        )
        print(part["target"], flush=True)


if __name__ == "__main__":
    main()
