"""A sampling rate that changes during training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_pfc.checked import checked
from lightning_pfc.heads.sampling.base import Sampler
from lightning_pfc.heads.sampling.context import SamplingContext
from lightning_pfc.heads.sampling.sampled_classes import SampledClasses
from lightning_pfc.heads.sampling.uniform_draw import class_budget
from lightning_pfc.registry import from_config


@checked
@dataclass(frozen=True, kw_only=True)
class RateSchedule(Sampler):
    """``sampler`` at a rate that goes from ``start`` to the head's ``sample_rate``.

    A rate that falls saves time when most negatives have become easy; one that rises gives the exact softmax the last
    word. The head's ``step`` decides, which is saved, so a resumed run goes on where it was. On an accelerator reading
    it waits for the device once a step.

    Args:
        sampler: what draws: a sampler, its name, or a mapping of name and arguments.
        start: the rate at first, in [0, 1].
        steps: training forwards that the change takes, >= 1.
        begin: forwards before it begins, >= 0.
        shape: "linear", or "step": all at once when ``begin + steps`` forwards are done.
    """

    sampler: Sampler | str | Mapping[str, Any] = "uniform"
    start: float = 1.0
    steps: int = 1000
    begin: int = 0
    shape: Literal["linear", "step"] = "linear"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sampler", from_config(Sampler, self.sampler))
        super().__post_init__()
        self._check_number("start", 0.0, 1.0)
        self._check_count("steps")
        self._check_count("begin", 0)
        self._check_choice("shape", ("linear", "step"))

    @property
    def inner(self) -> Sampler:
        """What draws."""
        assert isinstance(self.sampler, Sampler)
        return self.sampler

    @property
    def needs_counts(self) -> bool:  # type: ignore[override]
        """As the inner sampler."""
        return self.inner.needs_counts

    def _at(self, context: SamplingContext) -> SamplingContext:
        share = min(max((int(context.step) - self.begin) / self.steps, 0.0), 1.0)
        if self.shape == "step":
            share = float(share >= 1.0)
        first = class_budget(self.start, context.num_classes)
        return replace(context, budget=first + round((context.budget - first) * share))

    def sample(self, context: SamplingContext) -> SampledClasses:
        """As the inner sampler, with this step's budget."""
        return self.inner.sample(self._at(context))

    def predict_rows(self, context: SamplingContext) -> Tensor | None:
        """As the inner sampler, with that step's budget."""
        return self.inner.predict_rows(self._at(context))

    def is_subsampling(self, rate: float) -> bool:
        """Whether anything is ever left out."""
        return self.inner.is_subsampling(min(rate, self.start))

    @property
    def reweights_negatives(self) -> bool:
        """As the inner sampler."""
        return self.inner.reweights_negatives

    def initial_state(self, num_classes: int, embedding_dim: int) -> dict[str, Tensor]:
        """As the inner sampler."""
        return self.inner.initial_state(num_classes, embedding_dim)

    def row_state(self, embedding_dim: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """As the inner sampler."""
        return self.inner.row_state(embedding_dim)
