"""All pairs of embeddings above a cosine, exactly, block by block."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_pfc.evaluation.blockwise import UnitRows, entries_above
from lightning_pfc.matmul.float32 import true_float32

_BLOCK = 2048


def pairs_above(rows: Tensor, value: float, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """All pairs of rows whose cosine is above a value; with labels, of one label only.

    Args:
        rows: (N, D) embeddings.
        value: What to exceed, compared in float64.
        labels: (N,) integers.

    Returns:
        Positions of both rows of each pair, (p,) int64 each, the first smaller.
    """
    if labels is not None:
        return _genuine_above(UnitRows(rows), value, labels)
    unit = UnitRows(rows)
    first, second = [], []
    with true_float32(), torch.no_grad():
        for top in range(0, len(unit), _BLOCK):
            for left in range(top, len(unit), _BLOCK):
                scores = unit.unit[top : top + _BLOCK] @ unit.unit[left : left + _BLOCK].T
                place, _ = entries_above(scores.contiguous(), value - 2 * unit.tolerance)
                a, b = top + place // scores.shape[1], left + place % scores.shape[1]
                a, b = a[a < b], b[a < b]
                over = unit.exact(a, b) > value
                first.append(a[over])
                second.append(b[over])
    return torch.cat(first), torch.cat(second)


def _genuine_above(unit: UnitRows, value: float, labels: Tensor) -> tuple[Tensor, Tensor]:
    order = labels.sort(stable=True).indices
    ordered = labels[order]
    first, second = [], []
    step = 1
    while step < len(order):
        mates = (ordered[:-step] == ordered[step:]).nonzero().squeeze(1)
        if not len(mates):
            break
        first.append(order[mates])
        second.append(order[mates + step])
        step += 1
    if not first:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    a, b = torch.cat(first), torch.cat(second)
    over = unit.exact(a, b) > value
    return torch.minimum(a, b)[over], torch.maximum(a, b)[over]
