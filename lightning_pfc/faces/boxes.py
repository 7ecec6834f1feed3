"""What every detector needs: a picture brought to the size of its input, and overlapping boxes thinned out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


def fit_in(image: Pixels, size: tuple[int, int], cv2: Any) -> tuple[Pixels, float]:
    """A picture in the upper left corner of a black canvas; larger ones are made smaller, none is made larger.

    Args:
        image: (h, w, 3) uint8.
        size: (H, W) of the canvas.
        cv2: OpenCV.

    Returns:
        (H, W, 3) uint8, and the scale: a point of the canvas divided by it is one of the picture.
    """
    height, width = image.shape[:2]
    scale = min(size[0] / height, size[1] / width, 1.0)
    canvas = np.zeros((*size, 3), np.uint8)
    if scale < 1.0:
        small = (max(1, int(width * scale)), max(1, int(height * scale)))
        # Averaging where many pixels become one: a line of one pixel must not vanish.
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA if scale < 0.5 else cv2.INTER_LINEAR)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas, scale


def thin_out(boxes: Floats, scores: Floats, overlap: float) -> npt.NDArray[np.int64]:
    """Positions of the boxes that no better one covers (non-maximum suppression), the best first.

    Args:
        boxes: (n, 4) left, top, right, bottom.
        scores: (n,).
        overlap: Intersection over union above which the worse of two goes.
    """
    order = np.argsort(-scores, kind="stable")
    area = np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0)
    kept: list[int] = []
    while len(order):
        best, rest = int(order[0]), order[1:]
        kept.append(best)
        left_top = np.maximum(boxes[best, :2], boxes[rest, :2])
        right_bottom = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        common = np.prod(np.maximum(right_bottom - left_top, 0), axis=1)
        order = rest[common <= overlap * (area[best] + area[rest] - common)]
    return np.asarray(kept, dtype=np.int64)


def cells(stride: int, size: tuple[int, int], per_cell: int = 1) -> Floats:
    """(n, 2) x and y of the corner of each cell of a grid, row by row, each ``per_cell`` times."""
    rows, columns = size[0] // stride, size[1] // stride
    y, x = np.mgrid[:rows, :columns]
    grid = np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float32)
    return np.repeat(grid, per_cell, axis=0) * stride
