"""The classes of one step that live on this rank, and small questions about sets of classes.

Capital letters are global, small ones this rank's part: B rows, C/c classes, K/k sampled classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_pfc.buffers.staged_rows import StagedRows
from lightning_pfc.distributed.shard import ClassShard
from lightning_pfc.heads.softmax.spec import SampledRows
from lightning_pfc.kernels.unit_embeddings import own_columns


@dataclass(frozen=True)
class SampledClasses:
    """The classes of one step that live on this rank.

    Attributes:
        index: (k,) int64, ascending local rows; None means all c rows.
        columns: (B,) int64, the place of each row's target among the k, or -1 where another rank owns it; (B, P) for
            labels of several positives, -1 also for none.
        num_sampled: () int64 tensor, K over all ranks.
        valid: (k,) bool, False where ``index`` is padding (static shapes only); None means all are real.
        log_weight: (k,) float, logarithm of how often a class counts as a negative: 0 is once, ``-log p`` makes up for
            a class that is drawn with probability p only, ``-inf`` leaves it out; None means once each.
        num_valid: () int64 tensor, how many of ``index`` are real, if it was counted; these come first.
        staged: their rows, on their way from the host's memory; None if they were not requested ahead.
    """

    index: Tensor | None
    columns: Tensor
    num_sampled: Tensor
    valid: Tensor | None = None
    log_weight: Tensor | None = None
    num_valid: Tensor | None = None
    staged: StagedRows | None = None

    @property
    def rows(self) -> SampledRows:
        """What the softmax has to know of them."""
        return SampledRows(self.index, self.num_sampled, self.valid, self.log_weight, self.num_valid, self.staged)

    @property
    def targets(self) -> Tensor:
        """(B, P) columns of each row's targets among them; -1 where another rank owns one, or for none."""
        return self.columns if self.columns.dim() == 2 else self.columns[:, None]

    def for_labels(self, labels: Tensor) -> SampledClasses:
        """These for labels (B, P), -1 for none, where ``columns`` (B P,) are of labels without gaps."""
        return replace(self, columns=torch.where(labels == -1, -1, self.columns.view(labels.shape)))


def all_classes(labels: Tensor, shard: ClassShard) -> SampledClasses:
    """Nothing is left out: rate 1, and evaluation."""
    columns = own_columns(labels, shard.start, shard.stop)
    return SampledClasses(None, columns, labels.new_full((), shard.num_classes))


def columns_of(labels: Tensor, index: Tensor, shard: ClassShard) -> Tensor:
    """The place of each label among the ascending local rows ``index``, or -1 where another rank owns it."""
    return torch.where(shard.owns(labels), torch.searchsorted(index, labels - shard.start), -1)


def distinct(ids: Tensor) -> Tensor:
    """``ids`` in ascending order, each once; on an accelerator it waits for the device."""
    found: Tensor = torch.unique(ids)
    return found


def is_among(ids: Tensor, ordered: Tensor) -> Tensor:
    """Which of ``ids`` are in ``ordered`` (ascending, repeats allowed), bool of the shape of ``ids``."""
    if ordered.shape[0] == 0:
        return torch.zeros_like(ids, dtype=torch.bool)
    place = torch.searchsorted(ordered, ids).clamp(max=ordered.shape[0] - 1)
    return ordered[place] == ids
