"""Negatives in proportion to a power of how many images their class has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_pfc.distributed.collectives import all_reduce
from lightning_pfc.heads.sampling.base import Drawn, Sampler
from lightning_pfc.heads.sampling.context import SamplingContext
from lightning_pfc.heads.sampling.sampled_classes import distinct, is_among
from lightning_pfc.keyed_random.uniform import keyed_uniform

_BLOCK = 1 << 16  # classes whose random numbers are held at a time
_STREAM = 3  # of the random numbers, apart from those of the losses


@dataclass(frozen=True, kw_only=True)
class Frequency(Sampler):
    """Drawn without replacement, one after another, in proportion to ``count ** alpha``.

    The classes with the smallest keys ``E_j / count_j ** alpha`` are taken, where E_j is exponentially distributed and
    a function of (seed, step, class): weighted sampling without replacement (Efraimidis and Spirakis, 2006, in the
    logarithm). ``alpha=1`` draws classes as often as a sampled image's class would be, ``0`` evenly, a negative one
    the tail before the head. The set does not depend on how the classes are split over ranks.

    Costs a hash of every class of the rank and a selection of its K smallest, O(c) a step, no sort of all; one
    all-gather of K pairs of numbers. The counts come from the data (``PartialFCModule`` sees to it) or from
    ``head.set_class_counts``, and are part of the checkpoint, 4 bytes a class.

    With ``correction`` a class counts ``1 / (1 - exp(-tau count ** alpha))`` times, tau being the smallest key that was
    not taken: exact in expectation (Cohen and Kaplan, "Summarizing data using bottom-k sketches", PODC 2007).

    Args:
        alpha: the power; classes without an image count as if they had one.
        correction: see :class:`Sampler`.
    """

    alpha: float = 0.5

    has_inclusion_probs: ClassVar[bool] = True
    needs_counts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("alpha", -4.0, 4.0)

    def draw(self, context: SamplingContext) -> Drawn:
        """The classes with the smallest keys but for the targets', and their probabilities."""
        if "counted" not in context.cache:
            if not context.state["count"].all():
                raise ValueError(
                    "Frequency draws by how many images each class has, and was not given it: call "
                    "head.set_class_counts(counts) with (num_classes,) integers before training."
                )
            context.cache["counted"] = True
        targets = distinct(context.targets)
        # with less room than that, everything takes part
        count = min(context.budget, context.num_classes) - targets.shape[0]
        if count <= 0:
            return Drawn(targets[:0])
        ids, keys = self._smallest(context, targets, count + 1)
        classes, scores = context.best(ids, -keys, count + 1)
        if classes.shape[0] <= count:
            return Drawn(classes)
        if not self.correction:
            return Drawn(classes[:count])
        weights = self._weights_of(context, classes[:count])
        return Drawn(classes[:count], torch.log(-torch.expm1(weights * scores[count])))

    def _smallest(self, context: SamplingContext, targets: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Ids and keys of this rank's ``count`` smallest keys."""
        shard, found = context.shard, context.state["count"]
        ids, keys = targets[:0], torch.empty(0, dtype=torch.float64, device=targets.device)
        for low in range(0, shard.num_local, _BLOCK):
            high = min(low + _BLOCK, shard.num_local)
            block = torch.arange(shard.start + low, shard.start + high, device=targets.device)
            exponential = -keyed_uniform(context.seed, context.step, block, _STREAM).log()
            key = exponential / self._weights(found[low:high])
            key = key.masked_fill(is_among(block, targets), torch.inf)
            ids, keys = torch.cat([ids, block]), torch.cat([keys, key])
            if keys.shape[0] > count:
                keys, place = keys.topk(count, largest=False, sorted=False)
                ids = ids[place]
        real = keys.isfinite()
        return ids[real], keys[real]

    def _weights(self, count: Tensor) -> Tensor:
        return count.double() ** self.alpha

    def _weights_of(self, context: SamplingContext, classes: Tensor) -> Tensor:
        """Weights (n,) of any classes, from the ranks that have them; one all-reduce of (n,)."""
        shard = context.shard
        own = context.state["count"][(classes - shard.start).clamp(0, shard.num_local - 1)]
        return all_reduce(torch.where(shard.owns(classes), self._weights(own), 0.0), context.comm.shard_group)
