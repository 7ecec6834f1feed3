"""What a head says of embeddings beside the loss: where a target stands, and which classes are the best."""

from __future__ import annotations

from dataclasses import replace
from operator import index
from typing import TYPE_CHECKING, SupportsIndex

import torch
from torch import Tensor, nn

from lightning_pfc.heads.batch import GlobalBatch
from lightning_pfc.heads.batch_checks import device_of
from lightning_pfc.heads.sampling.sampled_classes import all_classes
from lightning_pfc.heads.softmax.class_chunks import ClassChunks
from lightning_pfc.heads.softmax.target_rank import TargetRanks, rank_targets
from lightning_pfc.heads.softmax.top_classes import TopClasses, top_classes
from lightning_pfc.matmul.no_autocast import no_autocast

if TYPE_CHECKING:
    from lightning_pfc.heads.partial_fc import PartialFC


@torch.no_grad()
def target_ranks(head: PartialFC, embeddings: Tensor, labels: Tensor) -> TargetRanks:
    """:meth:`PartialFC.target_ranks`."""
    with no_autocast(device_of(embeddings)):
        batch, chunks = _every_class(head, embeddings, labels, "PartialFC.target_ranks")
        found = rank_targets(chunks.x, head.weight, head.bias, chunks.targets, chunks.rows, chunks.spec)
    return TargetRanks(found.rank[batch.own], found.cosine[batch.own])


@torch.no_grad()
def best_classes(head: PartialFC, embeddings: Tensor, k: int) -> TopClasses:
    """:meth:`PartialFC.top_classes`."""
    if not isinstance(k, SupportsIndex) or (wanted := index(k)) < 1:
        raise ValueError(f"k={k!r} must be a whole number of at least 1.")
    comm, count = head.comm, min(wanted, head.num_classes)
    rows = embeddings.shape[:1].numel() if isinstance(embeddings, Tensor) else 0
    unused = torch.zeros(rows, dtype=torch.int64, device=device_of(embeddings))
    with no_autocast(unused.device):
        batch, chunks = _every_class(head, embeddings, unused, "PartialFC.top_classes")
        found = top_classes(chunks, head.shard.start, count, comm.shard_size, comm.shard_group)
    return TopClasses(found.score[batch.own], found.label[batch.own])


def _every_class(head: PartialFC, embeddings: Tensor, labels: Tensor, tag: str) -> tuple[GlobalBatch, ClassChunks]:
    """The batch of all ranks, and this rank's classes, all of them, for it."""
    head._ensure_storage()
    batch = head._gather(embeddings, labels, tag)
    x = nn.functional.normalize(batch.x) if head.loss.normalize else batch.x
    every = all_classes(batch.labels, head.shard)
    spec = replace(
        head._limits(),
        normalize=head.loss.normalize,
        centers_per_class=head.loss.num_centers,
        precision="float32",
    )
    return batch, ClassChunks(x, head.weight, head.bias, every.targets, every.rows, spec)
