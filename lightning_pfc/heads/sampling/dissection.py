"""Targets for the intra-class term only, a uniform draw for the inter-class term: the sampler of D-Softmax-K."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lightning_pfc.heads.sampling.base import Sampler
from lightning_pfc.heads.sampling.context import SamplingContext
from lightning_pfc.heads.sampling.sampled_classes import SampledClasses, columns_of, distinct, is_among
from lightning_pfc.heads.sampling.uniform_draw import sample_uniform


@dataclass(frozen=True, kw_only=True)
class Dissection(Sampler):
    """Negatives drawn uniformly from all C classes; a target that was not drawn is not a negative of other samples.

    Softmax Dissection (arXiv:1908.01281, D-Softmax-K) samples the inter-class term alone and keeps the
    intra-class term whole. Partial FC's samples always hold the targets of the whole batch, which makes a class that
    has an image in the batch a negative more often than others; here all classes are negatives equally often. Meant for
    ``loss=dsoftmax``, possible with any. Costs what :class:`Uniform` costs, on any number of ranks.

    Args:
        correction: see :class:`Sampler`; every negative was drawn with probability K / C.
    """

    has_inclusion_probs: ClassVar[bool] = True

    @property
    def reweights_negatives(self) -> bool:
        """Always: targets that were not drawn count for nothing."""
        return True

    def sample(self, context: SamplingContext) -> SampledClasses:
        """The drawn classes, and the targets, that live on this rank."""
        none, shard = context.targets[:0], context.shard
        drawn = sample_uniform(none, none, shard, context.budget, context.seed, context.step, static_shapes=False)
        if drawn.index is None:
            return sample_uniform(context.targets, context.labels, shard, context.budget, context.seed, context.step)
        index = distinct(torch.cat([drawn.index, shard.local_rows(context.targets)]))
        once = torch.tensor(context.num_classes / max(1, context.budget)).log().item() if self.correction else 0.0
        weight = torch.where(is_among(index, drawn.index), once, -torch.inf)
        return SampledClasses(index, columns_of(context.labels, index, shard), drawn.num_sampled, None, weight)
