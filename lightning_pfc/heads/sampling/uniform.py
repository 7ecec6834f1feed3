"""Partial FC's own sampler, and its limit without any negative but the batch's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from lightning_pfc.heads.sampling.base import Sampler, fill_uniformly
from lightning_pfc.heads.sampling.context import SamplingContext
from lightning_pfc.heads.sampling.sampled_classes import SampledClasses
from lightning_pfc.heads.sampling.uniform_draw import sample_uniform


@dataclass(frozen=True, kw_only=True)
class Uniform(Sampler):
    """Every other class is equally likely, drawn without replacement (Partial FC, arXiv:2203.15565, section 3.2).

    Costs O(K + B log B) on every rank, whatever C is, and no collective; the drawn set does not depend on how the
    classes are split over ranks. Off the CPU, sizes are fixed and nothing waits for the device.

    Args:
        correction: see :class:`Sampler`.
    """

    has_inclusion_probs: ClassVar[bool] = True
    draws_from_labels: ClassVar[bool] = True

    def sample(self, context: SamplingContext) -> SampledClasses:
        """The classes of a step that live on this rank."""
        return fill_uniformly(context, context.targets, self.correction)

    def predict_rows(self, context: SamplingContext) -> Tensor | None:
        """All rows but the targets'."""
        none = context.step.new_empty(0)
        return sample_uniform(none, none, context.shard, context.budget, context.seed, context.step).index


@dataclass(frozen=True, kw_only=True)
class PositivesOnly(Sampler):
    """No class but the targets of the global batch, whatever the rate: ``sample_rate=0`` under a name.

    InsightFace's ``wf42m_pfc0008`` trains so. The softmax is then over the batch's own classes.
    """

    draws_from_labels: ClassVar[bool] = True

    def sample(self, context: SamplingContext) -> SampledClasses:
        """The targets that live on this rank."""
        return fill_uniformly(replace(context, budget=0), context.targets, correction=False)

    def is_subsampling(self, rate: float) -> bool:
        """Always."""
        return True
