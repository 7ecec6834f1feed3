"""The best classes of each embedding among those of all ranks, without bringing the centers together."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_pfc.distributed.collectives import all_gather_rows
from lightning_pfc.heads.softmax.class_chunks import ClassChunks, iter_cosines


class TopClasses(NamedTuple):
    """The best classes, the best first; of equal scores the smaller class id comes first.

    Attributes:
        score: (B, k) cosines (logits, for a loss without normalisation).
        label: (B, k) int64 class ids.
    """

    score: Tensor
    label: Tensor


@torch.no_grad()
def top_classes(chunks: ClassChunks, first: int, k: int, ranks: int, group: dist.ProcessGroup | None) -> TopClasses:
    """The k best classes of each row of ``chunks.x``. Two all-gathers of (B, k).

    Each rank finds its own k best, a chunk of classes at a time; the best of all are among these.

    Args:
        chunks: this rank's classes, all of them, and the embeddings (B, D), the same on all ranks of the group.
        first: id of this rank's first class.
        k: at most the number of classes of all ranks.
        ranks: of the group.
        group: the ranks that share the classes.
    """
    x = chunks.x
    best = TopClasses(
        x.new_full((x.shape[0], 0), -torch.inf), torch.zeros(x.shape[0], 0, dtype=torch.int64, device=x.device)
    )
    for chunk in iter_cosines(chunks):
        score, place = chunk.scores.topk(min(k, chunk.high - chunk.low), dim=1)
        label = place + (first + chunk.low)
        best = _best(torch.cat([best.score, score], 1), torch.cat([best.label, label], 1), k)
    missing = k - best.score.shape[1]  # a rank may hold fewer than k classes
    score = nn.functional.pad(best.score, (0, missing), value=-torch.inf)
    label = nn.functional.pad(best.label, (0, missing), value=-1)
    if ranks == 1:
        return TopClasses(score, label)
    scores, labels = (_side_by_side(part, ranks, group) for part in (score, label))
    return _best(scores, labels, k)


def _side_by_side(part: Tensor, ranks: int, group: dist.ProcessGroup | None) -> Tensor:
    """(B, k) of each rank to (B, ranks k)."""
    gathered = all_gather_rows(part.contiguous(), ranks, group)
    return gathered.view(ranks, *part.shape).transpose(0, 1).flatten(1)


def _best(score: Tensor, label: Tensor, k: int) -> TopClasses:
    order = label.argsort(1)
    score, label = score.gather(1, order), label.gather(1, order)
    order = score.argsort(dim=1, descending=True, stable=True)[:, :k]
    return TopClasses(score.gather(1, order), label.gather(1, order))
