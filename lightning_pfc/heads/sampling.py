"""Which classes take part in a step: every target of the global batch, and negatives drawn evenly up to a budget.

Capital letters are global, small ones this rank's part: B rows, C/c classes, K/k sampled classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_pfc.distributed.shard import ClassShard
from lightning_pfc.heads.permutation import Permutation, round_keys


@dataclass(frozen=True)
class Sample:
    """The classes of one step that live on this rank.

    Attributes:
        index: (k,) int64, ascending local rows; None means all c rows.
        columns: (B,) int64, the place of each row's target among the k, or -1 where another rank owns it.
        num_sampled: () int64 tensor, K over all ranks.
        valid: (k,) bool, False where ``index`` is padding (static shapes only); None means all are real.
        log_weight: (k,) float, logarithm of how often a class counts as a negative: 0 is once, ``-log p`` makes up for
            a class that is drawn with probability p only, ``-inf`` leaves it out; None means once each.
    """

    index: Tensor | None
    columns: Tensor
    num_sampled: Tensor
    valid: Tensor | None = None
    log_weight: Tensor | None = None

    def offsets(self, dtype: torch.dtype) -> Tensor | None:
        """What is added to the negatives' logits, (k,): ``log_weight``, ``-inf`` for padding; None for nothing."""
        if self.valid is None:
            return None if self.log_weight is None else self.log_weight.to(dtype)
        base = 0.0 if self.log_weight is None else self.log_weight
        return torch.where(self.valid, base, -torch.inf).to(dtype)


def all_classes(labels: Tensor, shard: ClassShard) -> Sample:
    """The sample that leaves nothing out: rate 1, and evaluation."""
    local = labels - shard.start
    owned = (labels >= shard.start) & (labels < shard.stop)
    return Sample(None, torch.where(owned, local, -1), labels.new_full((), shard.num_classes))


def class_budget(sample_rate: float, num_classes: int) -> int:
    """``round(r C)``: how many classes a step is to use when the targets leave room."""
    return min(round(sample_rate * num_classes), num_classes)


def sample_uniform(
    all_labels: Tensor,
    labels: Tensor,
    shard: ClassShard,
    budget: int,
    seed: int,
    step: Tensor,
    static_shapes: bool | None = None,
) -> Sample:
    """Partial FC's sample (arXiv:2203.15565, section 3.2), a function of (seed, step, targets) and of nothing else.

    ``K = max(budget, number of distinct targets)``. All targets are kept; the rest is drawn without replacement from
    the other classes. The drawn set does not depend on how the classes are sharded: walk the classes in the order of a
    keyed permutation, skip the targets, stop when the budget is full. Costs O(K + B log B) on every rank, whatever C
    is, and no collective. On a CPU the sizes are exact; elsewhere they are padded to :func:`capacity`, so nothing waits
    for the device.

    Args:
        all_labels: (B,) int64, the targets of the global batch, the same on every rank.
        labels: (B',) int64, the targets of the rows that this rank's group of ranks works on: all of them, unless the
            head is replicated over several groups.
        shard: the classes of this rank.
        budget: see :func:`class_budget`; 0 keeps positives only.
        seed: of the head.
        step: () int64 tensor, the number of training forwards before this one.
        static_shapes: whether sizes must not depend on values; None: everywhere but on a CPU.
    """
    if budget >= shard.num_classes:
        return all_classes(labels, shard)
    ordered = all_labels.sort().values
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    num_targets = first.sum()
    owned_targets = first & (ordered >= shard.start) & (ordered < shard.stop)
    candidates, chosen = _negatives(all_labels, shard, budget, num_targets, seed, step)

    if static_shapes is None:
        static_shapes = labels.device.type != "cpu"
    if not static_shapes:
        index = torch.cat([ordered[owned_targets], candidates[chosen]]).sub_(shard.start).sort().values
        valid = None
    else:
        index, valid = _compact(
            torch.cat([ordered, candidates]) - shard.start,
            torch.cat([owned_targets, chosen]),
            capacity(all_labels.shape[0], shard, budget),
            shard.num_local,
        )
    columns = columns_of(labels, index, shard)
    if valid is not None:  # padding repeats the last real row, so that it adds nothing to what an optimizer touches
        index = torch.where(valid, index, index.masked_fill(~valid, 0).amax())
    return Sample(index, columns, num_targets.clamp(min=budget), valid)


def columns_of(labels: Tensor, index: Tensor, shard: ClassShard) -> Tensor:
    """The place of each label among the ascending local rows ``index``, or -1 where another rank owns it."""
    owned = (labels >= shard.start) & (labels < shard.stop)
    return torch.where(owned, torch.searchsorted(index, labels - shard.start), -1)


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


def capacity(batch: int, shard: ClassShard, budget: int) -> int:
    """Rows that hold a rank's part of any sample: its negatives with eight standard deviations, and all targets."""
    mean = budget * shard.num_local / shard.num_classes
    return min(shard.num_local, batch + budget, batch + int(mean + 8 * mean**0.5) + 1)


def _negatives(
    labels: Tensor, shard: ClassShard, budget: int, num_targets: Tensor, seed: int, step: Tensor
) -> tuple[Tensor, Tensor]:
    """Candidates (M,) in drawing order as global ids, and which of them (M,) are this rank's negatives."""
    permutation = Permutation(shard.num_classes, round_keys(seed, step.to(labels.device)))
    # Fewer than sqrt(C) + 1 points of the domain are no classes: with that many spare, the first M hold the budget.
    spare = permutation.domain - shard.num_classes
    length = min(permutation.domain, budget + spare) if budget else 0
    candidates = permutation(torch.arange(length, device=labels.device))
    negative = torch.ones(length + 1, dtype=torch.bool, device=labels.device)
    # The inverse permutation says where a target would be drawn, so no search through what was drawn is needed.
    negative[permutation.inverse(labels).clamp(max=length)] = False
    negative = negative[:length] & (candidates < shard.num_classes)
    chosen = negative & (negative.cumsum(0) <= (budget - num_targets).clamp(min=0))
    return candidates, chosen & (candidates >= shard.start) & (candidates < shard.stop)


def _compact(values: Tensor, keep: Tensor, size: int, filler: int) -> tuple[Tensor, Tensor]:
    """The kept values, ascending, padded with ``filler`` to a fixed size: boolean indexing that never waits."""
    place = torch.where(keep, keep.cumsum(0) - 1, size).clamp(max=size)
    out = values.new_full((size + 1,), filler)
    out = out.scatter(0, place, torch.where(keep, values, filler))[:size].sort().values
    return out, out < filler
