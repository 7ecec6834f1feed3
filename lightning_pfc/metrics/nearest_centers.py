"""Which center is nearest to which, and to which sample, without the head ever being gathered.

A class with several centers (sub-center losses) is as near to something as its nearest center is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_pfc.distributed.collectives import all_reduce
from lightning_pfc.distributed.shard import ClassShard
from lightning_pfc.heads.partial_fc import PartialFC

_EXCLUDED = -4.0  # added to a cosine, it never is the largest one


class NearestCenters(NamedTuple):
    """For each class of this rank's shard.

    Attributes:
        cosine: Largest cosine to a center of another class, of all shards, (c,) float32; -1 for a class whose own
            center has no direction (length zero, or not finite).
        neighbour: Which class that is, (c,) int64 global id; -1 where there is none.
        norm: Length of the center, (c,) float32; of several, the mean.
    """

    cosine: Tensor
    neighbour: Tensor
    norm: Tensor


class Collision(NamedTuple):
    """Two classes whose centers are near each other.

    Attributes:
        first: Global class id, the smaller one.
        second: Global class id.
        cosine: Of their centers.
    """

    first: int
    second: int
    cosine: float


@torch.no_grad()
def nearest_centers(head: PartialFC, *, chunk: int = 2048) -> NearestCenters:
    """The nearest other center of every class of this shard.

    The shards' rows travel once round in chunks: one broadcast of (chunk, D) at a time over the ranks that share the
    classes. Memory beyond the head: two chunks of rows and ``chunk^2`` cosines. Time: ``C * c * D`` multiply-adds on
    each rank, so ``C^2 D / W``: at a million classes of 512 numbers 5e14 over all ranks, a hundred times that at ten.

    Args:
        head: A head with storage; all ranks that share its classes must call.
        chunk: Classes at a time.

    Returns:
        See :class:`NearestCenters`.

    Raises:
        ValueError: When ``chunk`` is below 1, or the head has no storage yet.
    """
    if chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1")
    _need_storage(head)
    shard, comm, weight, several = head.shard, head.comm, head.weight.detach(), head.loss.num_centers
    parts = (_every_center(part.to(head.device), several).float() for part in torch.split(weight, chunk))
    norm = torch.cat([torch.linalg.vector_norm(part, dim=2).mean(1) for part in parts])
    cosine = torch.full_like(norm, -1.0)
    neighbour = torch.full(norm.shape, -1, dtype=torch.int64, device=norm.device)
    for owner in range(comm.shard_size):
        theirs = ClassShard(shard.num_classes, owner, comm.shard_size)
        for start in range(theirs.start, theirs.stop, chunk):
            stop = min(start + chunk, theirs.stop)
            if owner == comm.shard_rank:
                own = weight[start - shard.start : stop - shard.start].to(head.device)
                rows = _unit(_every_center(own, several)).flatten(0, 1)
            else:
                rows = norm.new_empty(((stop - start) * several, head.embedding_dim))
            if comm.shard_group is not None:
                dist.broadcast(rows, dist.get_global_rank(comm.shard_group, owner), group=comm.shard_group)
            excluded = torch.where((rows != 0).any(1), 0.0, _EXCLUDED)
            for low in range(0, len(norm), chunk):
                part = slice(low, min(low + chunk, len(norm)))
                scores = _unit(_every_center(weight[part].to(head.device), several)).flatten(0, 1) @ rows.T
                scores += excluded
                scores = scores.view(part.stop - low, several, stop - start, several).amax((1, 3))
                first, last = max(shard.start + low, start), min(shard.start + part.stop, stop)
                if first < last:  # a class never is its own neighbour
                    ids = torch.arange(first, last, device=norm.device)
                    scores[ids - shard.start - low, ids - start] = _EXCLUDED
                best, place = scores.max(1)
                better = best > cosine[part]
                cosine[part] = torch.where(better, best, cosine[part])
                neighbour[part] = torch.where(better, place + start, neighbour[part])
    lost = (norm == 0) | ~norm.isfinite()
    cosine[lost], neighbour[lost] = -1.0, -1
    return NearestCenters(cosine.clamp_(-1.0, 1.0), neighbour, norm)


@torch.no_grad()
def target_and_negative_cosines(
    head: PartialFC, embeddings: Tensor, labels: Tensor, *, chunk: int = 8192
) -> tuple[Tensor, Tensor]:
    """Cosine of each sample to its own center, and its largest cosine to any other center of all shards.

    Collectives: a gather of embeddings and one of labels, two all-reduces of (B,). All ranks that share the classes
    must call.

    Args:
        head: A head with storage.
        embeddings: (b, D); b may differ from rank to rank.
        labels: (b,) int64 global class ids.
        chunk: Classes at a time.

    Returns:
        Two tensors (b,) float32.

    Raises:
        ValueError: On a wrong shape, or when the head has no storage yet.
    """
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"embeddings must be (b, D), labels (b,), got {tuple(embeddings.shape)}, {tuple(labels.shape)}"
        )
    _need_storage(head)
    comm, shard, several = head.comm, head.shard, head.loss.num_centers
    rows, ids, before = _unit(embeddings), labels.long(), 0
    if comm.shard_group is not None:
        parts, id_parts = gather_all_tensors(rows, comm.shard_group), gather_all_tensors(ids, comm.shard_group)
        before = sum(len(part) for part in parts[: comm.shard_rank])
        rows, ids = torch.cat(parts), torch.cat(id_parts)
    target = rows.new_full((len(rows),), _EXCLUDED)
    negative = rows.new_full((len(rows),), _EXCLUDED)
    for low in range(0, shard.num_local, chunk):
        centers = _unit(_every_center(head.weight.detach()[low : low + chunk].to(rows.device), several))
        scores = (rows @ centers.flatten(0, 1).T).view(len(rows), len(centers), several).amax(2)
        local = (ids - shard.start - low)[:, None]
        here = (local >= 0) & (local < scores.shape[1])
        place = local.clamp(0, scores.shape[1] - 1)
        own = torch.where(here, scores.gather(1, place), _EXCLUDED)
        target = torch.maximum(target, own.squeeze(1))
        scores.scatter_(1, place, torch.where(here, _EXCLUDED, scores.gather(1, place)))
        negative = torch.maximum(negative, scores.amax(1))
    for values in (target, negative):
        all_reduce(values, comm.shard_group, "max")
    mine = slice(before, before + len(labels))
    return target[mine].clamp(-1.0, 1.0), negative[mine].clamp(-1.0, 1.0)


def worst_collisions(head: PartialFC, found: NearestCenters, count: int = 20) -> list[Collision]:
    """The pairs of classes with the nearest centers, over all shards: candidates for one identity under two names.

    Only pairs in which one is the other's nearest are known. Collectives: two gathers of ``2 * count`` numbers; the
    same list on every rank.

    Args:
        head: The head.
        found: What :func:`nearest_centers` gave here.
        count: Longest list.
    """
    order = found.cosine.argsort(descending=True)[: 2 * count]  # most pairs are found from both sides
    own = order[found.neighbour[order] >= 0]
    pairs = torch.stack([own + head.shard.start, found.neighbour[own]], dim=1)
    cosine = found.cosine[own]
    if head.comm.shard_group is not None:
        pairs = torch.cat(gather_all_tensors(pairs, head.comm.shard_group))
        cosine = torch.cat(gather_all_tensors(cosine, head.comm.shard_group))
    best: dict[tuple[int, int], float] = {}
    for (one, two), value in zip(pairs.tolist(), cosine.tolist(), strict=True):
        key = (min(one, two), max(one, two))
        best[key] = max(value, best.get(key, -1.0))
    ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))[:count]
    return [Collision(one, two, value) for (one, two), value in ranked]


def _need_storage(head: PartialFC) -> None:
    if not head.is_materialized:
        raise ValueError("the head has no storage yet; measure it after setup or its first forward")


def _every_center(weight: Tensor, several: int) -> Tensor:
    """(c, K D) rows of a head to (c, K, D)."""
    return weight.view(len(weight), several, -1)


def _unit(rows: Tensor) -> Tensor:
    """Rows (..., D) of length one in float32; rows of zeros and rows that are not finite become zeros."""
    rows = rows.detach().float()
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    usable = (norms > 0) & norms.isfinite()
    return torch.where(usable, rows / torch.where(usable, norms, 1.0), 0.0)
