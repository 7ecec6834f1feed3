"""A sheet of the pairs a model gets most wrong, with their images."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.patches import Rectangle
from torch import Tensor

from lightning_pfc.plots.canvas import GENUINE, IMPOSTOR, INK, new_figure, write

Pixels = npt.NDArray[np.uint8]
_WIDTH, _PICTURE, _HEADING = 1.62, 0.86, 0.32  # inches of a pair with its margin, of a picture, of a panel's heading


def plot_hardest_pairs(
    images: Callable[[int], Any] | Sequence[Any],
    first: Tensor,
    second: Tensor,
    scores: Tensor,
    same: Tensor,
    path: str | os.PathLike[str],
    *,
    count: int = 24,
    columns: int = 8,
    threshold: float | None = None,
    names: Callable[[int], str] | None = None,
    title: str = "Hardest pairs",
) -> Path:
    """The genuine pairs with the lowest and the impostor pairs with the highest scores, images side by side.

    Only the images that are shown are asked for.

    Args:
        images: Image by row, a function or a sequence; each (C, H, W) float in [-1, 1], (C, H, W), (H, W, C) or (H, W)
            uint8, or a Pillow image; C is 1 or 3.
        first: Row of a pair's first image, shape (P,).
        second: Row of its second image, shape (P,).
        scores: Similarities, shape (P,).
        same: Whether a pair shows one identity, shape (P,), bool.
        path: PNG to write.
        count: Pairs shown of each kind, at most.
        columns: Pairs in a row.
        threshold: Score above which a pair is accepted; pairs on the wrong side of it get a strong frame.
        names: Name of an image by row, written under it (keep it short).
        title: Title of the picture.

    Returns:
        The path written.

    Raises:
        ValueError: When there is no pair, or an image has a shape that cannot be shown.
    """
    if not len(scores):
        raise ValueError("scores is empty; there is no pair to show")
    if count < 1 or columns < 1:
        raise ValueError(f"count={count} and columns={columns} must be at least 1")
    scores, same = scores.detach().cpu().double(), same.cpu().bool()
    get: Callable[[int], Any] = images if callable(images) else images.__getitem__
    genuine = same.nonzero().squeeze(1)
    impostor = (~same).nonzero().squeeze(1)
    genuine = genuine[scores[genuine].argsort(stable=True)][:count]
    impostor = impostor[scores[impostor].argsort(descending=True, stable=True)][:count]
    panels = [
        (rows, text, colour)
        for rows, text, colour in (
            (genuine, "One identity, lowest scores", GENUINE),
            (impostor, "Two identities, highest scores", IMPOSTOR),
        )
        if len(rows)
    ]
    sheet = _Sheet(columns, [-(-len(rows) // columns) for rows, _, _ in panels], named=names is not None)
    sheet.write(title, 0.3, 13, INK)
    for rows, text, colour in panels:
        wrong = None if threshold is None else (scores[rows] > threshold) != same[rows]
        if wrong is not None:
            text += f" (threshold {threshold:.3f}: {int(wrong.sum())} of the {len(rows)} shown are on the wrong side)"
        sheet.write(text, _HEADING, 11, colour)
        for i, row in enumerate(rows.tolist()):
            a, b = int(first[row]), int(second[row])
            strong = wrong is not None and bool(wrong[i])
            frame = (colour, 2.5) if strong else ("#bbbbbb", 0.8)
            below = "" if names is None else f"{names(a)}\n{names(b)}"
            sheet.show(i, _beside(to_pixels(get(a)), to_pixels(get(b))), f"{float(scores[row]):.3f}", below, frame)
        sheet.end_panel(len(rows))
    return write(sheet.figure, path)


class _Sheet:
    """Pairs in rows and columns on one pair of axes, in inches from the upper left.

    Axes for each pair, and a layout that measures them, take ten times as long.
    """

    def __init__(self, columns: int, rows: Sequence[int], named: bool) -> None:
        self._columns, self._below = columns, 0.26 if named else 0.0
        self._cell = _PICTURE + 0.22 + self._below
        width, height = columns * _WIDTH, sum(rows) * self._cell + len(rows) * _HEADING + 0.4
        self.figure = new_figure(width, height)
        self.figure.set_layout_engine("none")
        self._axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        self._axes.axis("off")
        self._top = 0.0

    def write(self, text: str, height: float, size: int, colour: str) -> None:
        """A line of text across the sheet."""
        self._top += height
        self._axes.text(0.1, self._top - 0.06, text, fontsize=size, color=colour, va="bottom")

    def show(self, place: int, pixels: Pixels, above: str, below: str, frame: tuple[str, float]) -> None:
        """A pair in its place of the panel."""
        row, column = divmod(place, self._columns)
        scale = min((_WIDTH - 0.12) / pixels.shape[1], _PICTURE / pixels.shape[0])
        width, height = pixels.shape[1] * scale, pixels.shape[0] * scale
        middle, bottom = (column + 0.5) * _WIDTH, self._top + row * self._cell + 0.2 + _PICTURE
        extent = (middle - width / 2, middle + width / 2, bottom, bottom - height)
        self._axes.imshow(pixels, interpolation="nearest", extent=extent, aspect="auto", clip_on=False)
        colour, line = frame
        corner = (extent[0], bottom - height)
        self._axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=line))
        self._axes.text(middle, bottom - height - 0.03, above, fontsize=9, color=INK, ha="center", va="bottom")
        if below:
            self._axes.text(middle, bottom + 0.03, below, fontsize=6, color=INK, ha="center", va="top")

    def end_panel(self, count: int) -> None:
        """Go below the pairs of a panel."""
        self._top += -(-count // self._columns) * self._cell


def to_pixels(image: Any) -> Pixels:
    """Any of the accepted images as (H, W, 3) uint8.

    Raises:
        ValueError: On another shape.
    """
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    if array.dtype != np.uint8:
        array = np.clip(np.rint((array.astype(np.float64) + 1.0) * 127.5), 0, 255).astype(np.uint8)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        raise ValueError(f"an image must be (C, H, W), (H, W, C) or (H, W) with 1 or 3 channels, got {array.shape}")
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)), dtype=np.uint8)


def _beside(left: Pixels, right: Pixels) -> Pixels:
    """Two images on one canvas, centred in height, with a thin white gap."""
    height = max(left.shape[0], right.shape[0])
    gap = max(1, height // 24)
    canvas = np.full((height, left.shape[1] + gap + right.shape[1], 3), 255, dtype=np.uint8)
    for image, x in ((left, 0), (right, left.shape[1] + gap)):
        y = (height - image.shape[0]) // 2
        canvas[y : y + image.shape[0], x : x + image.shape[1]] = image
    return canvas
