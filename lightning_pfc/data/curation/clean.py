"""Finding label noise with embeddings: images that do not belong to their class, and classes that are one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from lightning_pfc.data.unit_length import unit

_ROWS = 1 << 15


@dataclass(frozen=True)
class Findings:
    """What looks wrong; to be looked at, nothing is changed.

    Attributes:
        outliers: ``(n,)`` positions of images far from their class.
        outlier_cosine: ``(n,)`` cosine to the class's center.
        nearest_class: ``(n,)`` the class whose center is nearest to each outlier.
        nearest_cosine: ``(n,)`` cosine to that center.
        merge: ``(m, 2)`` pairs of classes with centers close together.
        merge_cosine: ``(m,)`` cosine of their centers.
    """

    outliers: npt.NDArray[np.int64]
    outlier_cosine: npt.NDArray[np.float32]
    nearest_class: npt.NDArray[np.int64]
    nearest_cosine: npt.NDArray[np.float32]
    merge: npt.NDArray[np.int64]
    merge_cosine: npt.NDArray[np.float32]


def centers(
    embeddings: npt.NDArray[np.floating], labels: npt.NDArray[np.int64], keep: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.float32]:
    """``(C, D)`` unit-length mean direction of each class; zeros for a class without images.

    Args:
        embeddings: ``(N, D)``, also memory-mapped; need not have unit length.
        labels: ``(N,)`` in ``range(C)``.
        keep: ``(N,)`` which images count; all by default.
    """
    out = np.zeros((int(labels.max()) + 1, embeddings.shape[1]), np.float32)
    for start in range(0, len(labels), _ROWS):
        rows = slice(start, start + _ROWS)
        chosen = np.ones(len(labels[rows]), bool) if keep is None else keep[rows]
        np.add.at(out, labels[rows][chosen], unit(embeddings[rows])[chosen])
    return unit(out)


def find(
    embeddings: npt.NDArray[np.floating],
    labels: npt.NDArray[np.int64],
    *,
    outlier_below: float = 0.2,
    merge_above: float = 0.7,
    progress: bool = True,
) -> Findings:
    """Compares every image with the center of its class, and every center with all others.

    Centers are taken twice: over all images, then without the outliers of the first pass, so that a few wrong images
    do not pull a center to themselves. Memory: ``C x D`` floats and blocks of fixed size.

    Args:
        embeddings: ``(N, D)``, also memory-mapped.
        labels: ``(N,)`` in ``range(C)``.
        outlier_below: images with a smaller cosine to their class's center are outliers. Classes of one or two images
            have none: there is no majority to differ from.
        merge_above: classes whose centers have a larger cosine may be one.
        progress: show a progress bar.

    Raises:
        ValueError: the shapes do not fit, a label is negative, an embedding is not finite, or a threshold lies outside
            [-1, 1].
    """
    if embeddings.ndim != 2 or labels.shape != (len(embeddings),) or not len(labels):
        raise ValueError(
            f"embeddings and labels have the shapes {embeddings.shape} and {labels.shape}, not (N, D) and (N,)."
        )
    if labels.min() < 0:
        raise ValueError(f"labels hold {int(labels.min())}; classes are 0, 1, ...")
    for name, value in (("outlier_below", outlier_below), ("merge_above", merge_above)):
        if not -1 <= value <= 1:
            raise ValueError(f"{name} is {value}; a cosine lies between -1 and 1.")
    counts = np.bincount(labels)
    center = centers(embeddings, labels)
    cosine = _own_cosine(embeddings, labels, center)
    if not np.isfinite(cosine).all():
        raise ValueError(f"embedding {int(np.flatnonzero(~np.isfinite(cosine))[0])} is not finite.")
    center = centers(embeddings, labels, cosine >= outlier_below)
    cosine = _own_cosine(embeddings, labels, center)
    outliers = np.flatnonzero((cosine < outlier_below) & (counts[labels] > 2))
    nearest, nearest_cosine = _nearest(unit(embeddings[outliers]), center)
    merge, merge_cosine = _close_centers(center, merge_above, progress)
    return Findings(outliers, cosine[outliers], nearest, nearest_cosine, merge, merge_cosine)


def _own_cosine(
    embeddings: npt.NDArray[np.floating], labels: npt.NDArray[np.int64], center: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    out = np.empty(len(labels), np.float32)
    for start in range(0, len(labels), _ROWS):
        rows = slice(start, start + _ROWS)
        out[rows] = np.einsum("nd,nd->n", unit(embeddings[rows]), center[labels[rows]])
    return out


def _nearest(
    rows: npt.NDArray[np.float32], center: npt.NDArray[np.float32], block: int = 4096
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    best = np.full(len(rows), -2, np.float32)
    which = np.zeros(len(rows), np.int64)
    for low in range(0, len(rows), block):
        part = slice(low, low + block)
        for start in range(0, len(center), block):
            cosines = rows[part] @ center[start : start + block].T
            top = cosines.argmax(axis=1)
            value = cosines[np.arange(len(top)), top]
            better = value > best[part]
            which[part] = np.where(better, top + start, which[part])
            best[part] = np.where(better, value, best[part])
    return which, best


def _close_centers(
    center: npt.NDArray[np.float32], above: float, progress: bool, block: int = 4096
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    pairs: list[npt.NDArray[np.int64]] = []
    values: list[npt.NDArray[np.float32]] = []
    for low in tqdm(range(0, len(center), block), desc="comparing classes", disable=not progress):
        for start in range(low, len(center), block):
            cosines = center[low : low + block] @ center[start : start + block].T
            row, column = np.nonzero(cosines > above)
            after = column + start > row + low
            row, column = row[after], column[after]
            pairs.append(np.stack([row + low, column + start], axis=1))
            values.append(cosines[row, column])
    merge, cosine = np.concatenate(pairs), np.concatenate(values)
    order = np.lexsort((merge[:, 1], merge[:, 0], -cosine))
    return merge[order], cosine[order]
