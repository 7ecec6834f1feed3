"""What losses on the embeddings alone add to a head's loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_pfc.distributed.collectives import shared_gradient
from lightning_pfc.heads.batch import GlobalBatch
from lightning_pfc.heads.class_memory import ClassMemory
from lightning_pfc.heads.recomputation import Pass
from lightning_pfc.losses.auxiliary import AuxiliaryLoss


def add_auxiliary_losses(
    total: Tensor, losses: Sequence[AuxiliaryLoss], batch: GlobalBatch, memory: ClassMemory, now: Pass, shard_size: int
) -> Tensor:
    """``total`` () and what the losses make of the batch; what they remember of classes is brought up to date.

    Args:
        total: the head's loss.
        losses: to be added, each times its weight.
        batch: of the shard group.
        memory: of all classes.
        now: the pass; one that is computed again uses what the first one recalled.
        shard_size: ranks that compute the same value, so that its gradient counts once.
    """
    recalled = iter(now.recalled if now.again else ())
    for loss in losses:
        names = loss.class_buffers(batch.x.shape[1])
        for view in batch.views():
            known = next(recalled, None) or memory.gather(names, view.labels)
            value = loss(view.embeddings, view.labels, known)
            weight = loss.weight * (view.labels.shape[0] / batch.num_samples) * view.weight
            total = total + shared_gradient(value, shard_size) * weight
            if now.moves_on:
                now.recalled.append(known)
                with torch.no_grad():
                    memory.scatter_(loss.updated_class_buffers(view.embeddings, view.labels, known), view.labels)
    return total
