"""Pairs side by side on one page, the doubtful ones first: to be looked at."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lightning_pfc.data.formats.base import EncodedImages
from lightning_pfc.data.overlap.comparing import Found
from lightning_pfc.data.pictures.sheets import save_sheet, thumbnail

_EDGE, _TEXT, _COLUMNS, _HEAD = 96, 40, 5, 20
_MOST = 60  # of each kind


class _Shown(NamedTuple):
    images: tuple[int, int]
    words: tuple[str, str]
    score: float


def write_sheet(path: str | os.PathLike[str], a: EncodedImages, b: EncodedImages, found: Found) -> Path:
    """Write the page, whole or not at all: at most 60 pairs of each kind, the doubtful first.

    Args:
        path: the picture to write (.png or .jpg).
        a: the first set, at the left of each pair.
        b: the second.
        found: what they have in common.
    """
    parts = [(title, total, shown) for title, total, shown in _parts(a, b, found) if total]
    heights = [_HEAD + math.ceil(len(shown) / _COLUMNS) * (_EDGE + _TEXT) for _, _, shown in parts]
    sheet = Image.new("RGB", (_COLUMNS * (2 * _EDGE + 8), max(_HEAD, sum(heights))), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    if not parts:
        draw.text((4, 4), "nothing in common", "black", font)
    top = 0
    for (title, total, shown), height in zip(parts, heights, strict=True):
        more = f", the {len(shown)} most doubtful are shown" if total > len(shown) else ""
        draw.text((4, top + 4), f"{total:,} {title}{more}", "black", font)
        for number, pair in enumerate(shown):
            left, below = number % _COLUMNS * (2 * _EDGE + 8), top + _HEAD + number // _COLUMNS * (_EDGE + _TEXT)
            for column, images in enumerate((a, b)):
                sheet.paste(_thumbnail(images, pair.images[column]), (left + column * _EDGE, below))
            for line, text in enumerate((*pair.words, "" if math.isnan(pair.score) else f"{pair.score:.3f}")):
                draw.text((left + 2, below + _EDGE + 12 * line), _printable(text)[-34:], "black", font)
        top += height
    return save_sheet(sheet, path)


def _parts(a: EncodedImages, b: EncodedImages, found: Found) -> list[tuple[str, int, list[_Shown]]]:
    groups = (
        ("identities in both", found.identities, found.examples),
        ("names in both, of others as it seems", found.names, found.name_examples),
        ("pictures in both", found.pictures, np.stack([found.pictures.a, found.pictures.b], axis=1)),
    )
    out = []
    for title, pairs, images in groups:
        order = np.argsort(np.nan_to_num(pairs.score), kind="stable")
        if title.startswith("names"):
            order = order[::-1]  # of these the most alike are the doubtful ones
        out.append((title, len(pairs.a), [_shown(a, b, images[k], float(pairs.score[k])) for k in order[:_MOST]]))
    return out


def _shown(a: EncodedImages, b: EncodedImages, images: Sequence[int], score: float) -> _Shown:
    one, two = int(images[0]), int(images[1])
    return _Shown((one, two), (str(a.identities[a.labels[one]]), str(b.identities[b.labels[two]])), score)


def _printable(text: str) -> str:
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def _thumbnail(images: EncodedImages, image: int) -> Image.Image:
    return thumbnail(lambda: images.read(image), _EDGE - 2)
