"""An index over this rank's centers: every class in the cell of its nearest pivot; a search looks into a few cells.

It is an inverted file whose coarse quantizer is learned in step with training: one iteration of k-means (Lloyd) per
refresh, over the classes of all ranks. What a class's cell is does not depend on how classes are split over ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_pfc.buffers.host_rows import take_rows
from lightning_pfc.distributed.collectives import all_reduce
from lightning_pfc.heads.sampling.context import SamplingContext
from lightning_pfc.keyed_random.permutation import Permutation, round_keys

_BLOCK = 8192  # rows that are held in float32 at a time


class Members(NamedTuple):
    """Rows by cell: those of cell i are ``rows[start[i]:start[i + 1]]``."""

    rows: Tensor  # (c,) int64 local rows
    start: list[int]  # (cells + 1)


def direction(rows: Tensor, dim: int) -> Tensor:
    """Unit vectors (n, D) of centers (n, K D): the mean of a class's K centers."""
    return F.normalize(rows.float().view(rows.shape[0], -1, dim).mean(1), dim=1)


def first_pivots(context: SamplingContext, cells: int) -> Tensor:
    """The centers of ``cells`` classes drawn by the seed alone, (cells, D) unit. One all-reduce."""
    permutation = Permutation(context.num_classes, round_keys(context.seed, torch.full_like(context.step, -1)))
    length = min(permutation.domain, cells + permutation.domain - context.num_classes)  # some points are no classes
    ids = permutation(torch.arange(length, device=context.step.device)).to(context.targets.device)
    return direction(context.centers(ids[ids < context.num_classes][:cells]), context.dim)


def nearest(rows: Tensor, pivots: Tensor) -> Tensor:
    """The cell of each center (n, K D), (n,) int32."""
    found = torch.empty(rows.shape[0], dtype=torch.int32, device=pivots.device)
    across = pivots.float().t()
    for low in range(0, rows.shape[0], _BLOCK):
        part = direction(rows[low : low + _BLOCK].to(pivots.device), pivots.shape[1])
        found[low : low + _BLOCK] = (part @ across).argmax(1)
    return found


def moved_pivots(context: SamplingContext, pivots: Tensor, cell: Tensor) -> Tensor:
    """Means of the cells' members over all ranks, as unit vectors; an empty cell's pivot stays. One all-reduce."""
    sums = torch.zeros_like(pivots, dtype=torch.float64)
    for low in range(0, cell.shape[0], _BLOCK):
        rows = direction(context.weight[low : low + _BLOCK].to(pivots.device), pivots.shape[1])
        sums.index_add_(0, cell[low : low + _BLOCK].long(), rows.double())
    sums = all_reduce(sums, context.comm.shard_group)
    length = sums.norm(dim=1, keepdim=True)
    return torch.where(length > 1e-6, sums / length.clamp(min=1e-6), pivots.double()).to(pivots.dtype)


def members(cell: Tensor, cells: int) -> Members:
    """The rows of each cell, in ascending order."""
    counts = torch.bincount(cell.long(), minlength=cells)
    start = [0, *counts.cumsum(0).tolist()]
    return Members(cell.sort(stable=True).indices, start)


def search(
    queries: Tensor, weight: Tensor, pivots: Tensor, lists: Members, probes: int, among: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The classes in the cells nearest to the queries, and how near the nearest query is.

    Every query looks into the ``probes`` cells whose pivots are nearest to it; cells are gone through one by one.

    Args:
        queries: (B, D) unit.
        weight: (c, K D) this rank's centers; with several a class, the nearest counts.
        pivots: (cells, D) unit.
        lists: of the cells.
        probes: cells a query looks into.
        among: (c,) bool, which rows may be found; None: all.

    Returns:
        Local rows (n,) int64, each once, and cosines (n,) float32.
    """
    looked = (queries @ pivots.t()).topk(min(probes, pivots.shape[0])).indices  # (B, probes)
    cell, order = looked.flatten().sort(stable=True)
    query = queries.index_select(0, torch.div(order, looked.shape[1], rounding_mode="floor"))
    present, counts = torch.unique_consecutive(cell, return_counts=True)
    rows: list[Tensor] = []
    scores: list[Tensor] = []
    asking: list[Tensor] = []
    own: list[Tensor] = []
    at = 0
    for number, count in zip(present.tolist(), counts.tolist(), strict=True):
        asking.append(query[at : at + count])
        own.append(lists.rows[lists.start[number] : lists.start[number + 1]])
        at += count
        if at == query.shape[0] or sum(part.shape[0] for part in own) > _BLOCK:
            rows += own
            scores.append(_nearest_query(weight, own, asking))
            asking, own = [], []
    found, score = torch.cat(rows), torch.cat(scores)
    if among is None:
        return found, score
    kept = among[found]
    return found[kept], score[kept]


def _nearest_query(weight: Tensor, cells: list[Tensor], asking: list[Tensor]) -> Tensor:
    """For the rows of some cells, the cosine to the nearest of the queries that ask there."""
    dim = asking[0].shape[1]
    centers = take_rows(weight, torch.cat(cells), asking[0].device).float().view(-1, dim)  # (n K, D)
    per_class = weight.shape[1] // dim
    best = centers.new_empty(centers.shape[0])
    low = 0
    for own, queries in zip(cells, asking, strict=True):
        high = low + own.shape[0] * per_class
        if high > low:
            torch.amax(centers[low:high] @ queries.t(), 1, out=best[low:high])
        low = high
    best /= torch.linalg.vector_norm(centers, dim=1).clamp_(min=1e-12)
    return best.view(-1, per_class).amax(1)


def new_state(num_classes: int, cells: int | None, dim: int) -> dict[str, Tensor]:
    """The state of an index before its first refresh."""
    count = min(num_classes, cells or max(1, round(num_classes**0.5)))
    return {"pivots": torch.zeros(count, dim), "built": torch.zeros((), dtype=torch.int64)}


def refresh_(context: SamplingContext, every: int, parts: int) -> None:
    """Bring the index in ``context.state`` up to date where this step's turn has come.

    At the first step and every ``every`` steps the pivots move; every ``every / parts`` steps one in ``parts`` classes
    gets its cell anew. The lists are kept in ``context.cache``.
    """
    state, now = context.state, int(context.step)
    pivots, cell = state["pivots"], state["cell"]
    first = int(state["built"]) == 0
    stride = max(1, every // parts)
    if first:
        pivots.copy_(first_pivots(context, pivots.shape[0]))
        cell.copy_(nearest(context.weight, pivots))
        state["built"].fill_(1)
    elif now % every == 0:
        pivots.copy_(moved_pivots(context, pivots, cell))
    if not first and now % stride == 0:
        # by global class id, so that it does not matter which rank has it
        low = (now // stride - context.shard.start) % parts
        cell[low::parts] = nearest(context.weight[low::parts], pivots)
    if first or now % stride == 0 or "lists" not in context.cache:
        context.cache["lists"] = members(cell, pivots.shape[0])


def lists_of(cache: Mapping[str, object]) -> Members:
    """What :func:`refresh_` left."""
    lists = cache["lists"]
    assert isinstance(lists, Members)
    return lists
