"""Small pictures of what was rejected, with the reasons, on one page: to be looked at."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lightning_pfc.data.formats.folder import read_image_file
from lightning_pfc.data.pictures.sheets import save_sheet, thumbnail
from lightning_pfc.storage.enclosure import Enclosure

_EDGE, _TEXT, _COLUMNS, _MOST = 128, 40, 8, 200


def write_contact_sheet(path: str | os.PathLike[str], inside: Enclosure, rejects: Sequence[tuple[str, str]]) -> Path:
    """Write the page, whole or not at all; of more than 200 pictures the first are shown, and the rest counted.

    Args:
        path: The picture to write (.png or .jpg).
        inside: Where paths start from; what is a link out of it is not shown.
        rejects: Path and reason of each.
    """
    shown = list(rejects[:_MOST])
    rows = max(1, math.ceil(len(shown) / _COLUMNS))
    head = 20
    sheet = Image.new("RGB", (_COLUMNS * _EDGE, head + rows * (_EDGE + _TEXT)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    more = f", {len(rejects) - len(shown):,} more are not shown" if len(rejects) > len(shown) else ""
    draw.text((4, 4), f"{len(rejects):,} rejected{more}", "black", font)
    for number, (name, reason) in enumerate(shown):
        left, top = number % _COLUMNS * _EDGE, head + number // _COLUMNS * (_EDGE + _TEXT)
        sheet.paste(_thumbnail(name, inside), (left, top))
        words = [name[-22:], *(reason[start : start + 22] for start in (0, 22))]
        for line, text in enumerate(words):
            draw.text((left + 2, top + _EDGE + 12 * line), text, "black", font)
    return save_sheet(sheet, path)


def _thumbnail(name: str, inside: Enclosure) -> Image.Image:
    return thumbnail(lambda: read_image_file(name, inside=inside), _EDGE - 4)
