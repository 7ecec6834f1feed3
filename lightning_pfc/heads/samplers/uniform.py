"""Partial FC's own sampler, and its limit without any negative but the batch's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from lightning_pfc.heads.samplers.base import Sampler, Step, sample_rest
from lightning_pfc.heads.sampling import Sample, sample_uniform


@dataclass(frozen=True, kw_only=True)
class Uniform(Sampler):
    """Every other class is equally likely, drawn without replacement (Partial FC, arXiv:2203.15565, section 3.2).

    Costs O(K + B log B) on every rank, whatever C is, and no collective; the drawn set does not depend on how the
    classes are split over ranks. Off the CPU, sizes are fixed and nothing waits for the device.

    Args:
        correction: see :class:`Sampler`.
    """

    knows_inclusion: ClassVar[bool] = True

    def sample(self, step: Step) -> Sample:
        """The classes of a step that live on this rank."""
        return sample_rest(step, step.targets, self.correction)

    def foresee(self, step: Step) -> Tensor | None:
        """All rows but the targets'."""
        nobody = step.step.new_empty(0)
        return sample_uniform(nobody, nobody, step.shard, step.budget, step.seed, step.step).index


@dataclass(frozen=True, kw_only=True)
class PositivesOnly(Sampler):
    """No class but the targets of the global batch, whatever the rate: ``sample_rate=0`` under a name.

    InsightFace's ``wf42m_pfc0008`` trains so. The softmax is then over the batch's own classes.
    """

    def sample(self, step: Step) -> Sample:
        """The targets that live on this rank."""
        return sample_rest(replace(step, budget=0), step.targets, correction=False)

    def samples(self, rate: float) -> bool:
        """Always."""
        return True
