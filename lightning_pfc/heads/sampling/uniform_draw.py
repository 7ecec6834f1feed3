"""Which classes take part in a step: every target of the global batch, and negatives drawn uniformly up to a budget.

Capital letters are global, small ones this rank's part: B rows, C/c classes, K/k sampled classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_pfc.distributed.shard import ClassShard
from lightning_pfc.heads.sampling.sampled_classes import SampledClasses, all_classes, columns_of
from lightning_pfc.keyed_random.permutation import Permutation, round_keys


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
) -> SampledClasses:
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
    owned_targets = first & shard.owns(ordered)
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
    return SampledClasses(index, columns, num_targets.clamp(min=budget), valid)


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
    return candidates, chosen & shard.owns(candidates)


def _compact(values: Tensor, keep: Tensor, size: int, filler: int) -> tuple[Tensor, Tensor]:
    """The kept values, ascending, padded with ``filler`` to a fixed size: boolean indexing that never waits."""
    place = torch.where(keep, keep.cumsum(0) - 1, size).clamp(max=size)
    out = values.new_full((size + 1,), filler)
    out = out.scatter(0, place, torch.where(keep, values, filler))[:size].sort().values
    return out, out < filler
