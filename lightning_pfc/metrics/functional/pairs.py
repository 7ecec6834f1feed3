"""From embeddings to one distance per pair, the way the InsightFace protocol measures it."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS_AT_ONCE = 1 << 26  # numbers


def pair_squared_distances(embeddings: Tensor, first: Tensor, second: Tensor, *, chunk: int = 4096) -> Tensor:
    """Squared Euclidean distance between the unit vectors of each pair, in float64.

    The rows are normalised in float64 and subtracted before squaring, as the InsightFace protocol does; ``2 - 2 cos``
    would differ in the last digits. A row of zeros stays zero.

    Args:
        embeddings: One row per image, shape (N, D), any float dtype.
        first: Row of a pair's first image, shape (P,), integers.
        second: Row of a pair's second image, shape (P,), integers.
        chunk: Pairs handled at once; bounds memory to about ``3 * 8 * chunk * D`` bytes.

    Returns:
        Distances in [0, 4], shape (P,), float64, on the device of ``embeddings`` (or the CPU if it has no float64).

    Raises:
        ValueError: On a wrong shape, an index out of range or a chunk below 1.
    """
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings must have shape (N, D), got {tuple(embeddings.shape)}")
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"first and second must have one shape (P,), got {tuple(first.shape)}, {tuple(second.shape)}")
    if chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1")
    for name, index in (("first", first), ("second", second)):
        if len(index) and (int(index.min()) < 0 or int(index.max()) >= len(embeddings)):
            raise ValueError(
                f"{name} holds indices in [{int(index.min())}, {int(index.max())}] but embeddings has "
                f"{len(embeddings)} rows; pairs must index the images that were embedded"
            )
    if embeddings.device.type == "mps":  # no float64 there
        embeddings = embeddings.cpu()
    first, second = first.to(embeddings.device), second.to(embeddings.device)
    out = torch.empty(len(first), dtype=torch.float64, device=embeddings.device)
    # Each row once, where that is less work and fits: most images are in many pairs.
    once = len(embeddings) <= 2 * len(first) and embeddings.numel() <= _ROWS_AT_ONCE
    units = _unit(embeddings) if once else embeddings
    for start in range(0, len(first), chunk):
        part = slice(start, start + chunk)
        one, two = units[first[part]], units[second[part]]
        difference = one.sub_(two) if once else _unit(one) - _unit(two)
        out[part] = difference.square_().sum(dim=1)
    return out


def cosine_from_squared_distance(distances: Tensor) -> Tensor:
    """Cosine of two unit vectors from their squared distance: ``1 - d / 2``; any shape, the dtype is kept."""
    return 1.0 - 0.5 * distances


def _unit(rows: Tensor) -> Tensor:
    rows = rows.detach().to(torch.float64)
    norms = rows.square().sum(dim=1, keepdim=True).sqrt_()
    return rows / torch.where(norms == 0, 1.0, norms)
