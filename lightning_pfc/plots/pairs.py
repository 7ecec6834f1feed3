"""A sheet of the pairs a model gets most wrong, with their images."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import SubFigure
from torch import Tensor

from lightning_pfc.plots.canvas import GENUINE, IMPOSTOR, INK, new_figure, write

Pixels = npt.NDArray[np.uint8]


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
    heights = [-(-len(rows) // columns) * (1.12 if names is None else 1.3) + 0.35 for rows, _, _ in panels]
    figure = new_figure(columns * 1.62, sum(heights) + 0.4)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, color=INK)
    parts = figure.subfigures(len(panels), 1, height_ratios=heights, squeeze=False)
    for part, (rows, text, colour) in zip(parts.ravel(), panels, strict=True):
        wrong = None if threshold is None else (scores[rows] > threshold) != same[rows]
        if wrong is not None:
            text += f" (threshold {threshold:.3f}: {int(wrong.sum())} of the {len(rows)} shown are on the wrong side)"
        part.suptitle(text, x=0.01, ha="left", fontsize=11, color=colour)
        _draw_panel(part, rows, first, second, scores, get, wrong, colour, columns, names)
    return write(figure, path)


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


def _draw_panel(
    part: SubFigure,
    rows: Tensor,
    first: Tensor,
    second: Tensor,
    scores: Tensor,
    get: Callable[[int], Any],
    wrong: Tensor | None,
    colour: str,
    columns: int,
    names: Callable[[int], str] | None,
) -> None:
    grid = part.subplots(-(-len(rows) // columns), columns, squeeze=False).ravel()
    for axes in grid[len(rows) :]:
        axes.axis("off")
    for i, (axes, row) in enumerate(zip(grid, rows.tolist(), strict=False)):
        a, b = int(first[row]), int(second[row])
        axes.imshow(_beside(to_pixels(get(a)), to_pixels(get(b))), interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(f"{float(scores[row]):.3f}", fontsize=9, pad=2, color=INK)
        if names is not None:
            axes.set_xlabel(f"{names(a)}\n{names(b)}", fontsize=6, labelpad=2, color=INK)
        strong = wrong is not None and bool(wrong[i])
        for spine in axes.spines.values():
            spine.set_color(colour if strong else "#bbbbbb")
            spine.set_linewidth(2.5 if strong else 0.8)


def _beside(left: Pixels, right: Pixels) -> Pixels:
    """Two images on one canvas, centred in height, with a thin white gap."""
    height = max(left.shape[0], right.shape[0])
    gap = max(1, height // 24)
    canvas = np.full((height, left.shape[1] + gap + right.shape[1], 3), 255, dtype=np.uint8)
    for image, x in ((left, 0), (right, left.shape[1] + gap)):
        y = (height - image.shape[0]) // 2
        canvas[y : y + image.shape[0], x : x + image.shape[1]] = image
    return canvas
