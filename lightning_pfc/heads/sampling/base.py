"""What a sampler is to the head: given the targets of a step, which other classes take part in it.

Capital letters are global, small ones this rank's part: B rows of the batch, C/c classes, K/k sampled classes, D width
of an embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from lightning_pfc.heads.sampling.context import SamplingContext
from lightning_pfc.heads.sampling.draw_kernel import draw_sample
from lightning_pfc.heads.sampling.sampled_classes import SampledClasses, columns_of, distinct, is_among
from lightning_pfc.names.renamed import adopt_renamed_members, renamed_member
from lightning_pfc.registry import Configurable

_EARLIER_NAMES = {
    "fills_up": "fill_with_uniform",
    "knows_inclusion": "has_inclusion_probs",
    "weighs": "reweights_negatives",
    "foresee": "predict_rows",
    "samples": "is_subsampling",
}


class Drawn(NamedTuple):
    """What a sampler chose.

    Attributes:
        classes: (n,) int64 global ids, the same on every rank; targets and repeats do no harm.
        log_inclusion: (n,) float, logarithm of the probability with which each was to be drawn, given all that is not
            left to chance; None where they were certain.
    """

    classes: Tensor
    log_inclusion: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Sampler(Configurable):
    """Base of all samplers: every target of the global batch takes part, and what :meth:`classes` says.

    A sampler of your own overrides :meth:`classes`. It is right on any number of ranks if its ids are the same on every
    rank: let them depend on what is the same everywhere (targets, seed, step), and go through
    :meth:`SamplingContext.best` with what is not (this rank's centers). Sizes then depend on values, so a step waits
    for the device once or twice; :class:`Uniform` alone does not.

    Args:
        correction: let a class that was drawn with probability p count 1/p times as a negative, so that the sum over
            the negatives, and with it the full softmax's normalizer, is right in expectation (sampled softmax: add
            ``-log p`` to the logit). Partial FC does without.

    Raises:
        ValueError: for a number out of range, or ``correction`` where the probabilities are not known.
    """

    correction: bool = False

    fill_with_uniform: ClassVar[bool] = False  # draw the rest of the budget uniformly from the other classes
    has_inclusion_probs: ClassVar[bool] = False  # ``correction`` is possible
    draws_from_labels: ClassVar[bool] = False  # a function of targets, seed and step, without a collective
    needs_counts: ClassVar[bool] = False  # row state "count": images of each class, given by ``head.set_class_counts``

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        adopt_renamed_members(cls, _EARLIER_NAMES)

    def __getattr__(self, name: str) -> Any:
        return renamed_member(self, name, _EARLIER_NAMES)

    def __post_init__(self) -> None:
        self._check_flag("correction")
        if self.correction and not self.has_inclusion_probs:
            raise ValueError(
                f"{type(self).__name__}(correction=True): its inclusion probabilities are unknown, so that importance "
                "correction is impossible; leave correction false."
            )

    # --- what the head asks -------------------------------------------------------------------------------------------

    def classes(self, context: SamplingContext) -> Tensor:
        """Global ids (n,) int64 of the classes that take part besides the targets, the same on every rank."""
        raise NotImplementedError(f"{type(self).__name__} must define classes(context).")

    def draw(self, context: SamplingContext) -> Drawn:
        """As :meth:`classes`, with probabilities."""
        return Drawn(self.classes(context))

    def sample(self, context: SamplingContext) -> SampledClasses:
        """The classes of a step that live on this rank."""
        drawn = self.draw(context)
        if not self.fill_with_uniform:
            return self._sample_of(context, drawn)
        kept = distinct(torch.cat([context.targets, drawn.classes.to(context.targets)]))
        return fill_uniformly(context, kept, self.correction)

    def is_subsampling(self, rate: float) -> bool:
        """Whether anything is ever left out at this ``sample_rate``."""
        return rate < 1.0

    @property
    def reweights_negatives(self) -> bool:
        """Whether negatives may count other than once."""
        return self.correction

    def predict_rows(self, context: SamplingContext) -> Tensor | None:
        """Local rows (n,) that the next step will probably use, its targets not known yet; None: not predictable."""
        return None

    def initial_state(self, num_classes: int, embedding_dim: int) -> dict[str, Tensor]:
        """Small tensors that are kept and saved, the same on every rank."""
        return {}

    def row_state(self, embedding_dim: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """What is kept and saved of every class, sharded as the centers are, zero at first: shape and type of a row."""
        return {"count": ((), torch.int32)} if self.needs_counts else {}

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _sample_of(self, context: SamplingContext, drawn: Drawn) -> SampledClasses:
        shard = context.shard
        targets = distinct(context.targets)
        kept = distinct(torch.cat([targets, drawn.classes.to(targets)]))
        own = kept[shard.owns(kept)]
        weight = None
        if self.correction and drawn.log_inclusion is not None:
            ids, order = drawn.classes.sort()
            by_id = drawn.log_inclusion[order]
            place = torch.searchsorted(ids, own).clamp(max=max(0, ids.shape[0] - 1))
            weight = torch.where(is_among(own, targets), 0.0, -by_id[place]) if ids.shape[0] else None
        index = own - shard.start
        return SampledClasses(
            index, columns_of(context.labels, index, shard), kept.new_full((), kept.shape[0]), None, weight
        )


def fill_uniformly(context: SamplingContext, kept: Tensor, correction: bool) -> SampledClasses:
    """``kept`` (n,) classes, and others drawn uniformly until the budget is full; see :func:`draw_sample`."""
    found = draw_sample(kept, context.labels, context.shard, context.budget, context.seed, context.step)
    if not correction or found.index is None:
        return found
    kept = kept.sort().values
    first = torch.ones_like(kept, dtype=torch.bool)
    first[1:] = kept[1:] != kept[:-1]
    certain = first.sum()
    drawn, among = (found.num_sampled - certain).double(), (context.num_classes - certain).double()
    weight = torch.where(is_among(found.index + context.shard.start, kept), 0.0, (among / drawn.clamp(min=1.0)).log())
    return SampledClasses(found.index, found.columns, found.num_sampled, found.valid, weight)
