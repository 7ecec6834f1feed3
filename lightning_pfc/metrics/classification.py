"""Metrics over the sharded classes, fed by ``PartialFC.target_ranks``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_pfc.checked import checked

_NEVER = torch.iinfo(torch.int64).max


@checked
class ShardedTopK(Metric):
    """Share of samples whose own class is among the ``k`` best of ALL classes of all ranks.

    ``head.target_ranks(embeddings, labels)`` (a collective) counts, without gathering the head, how many classes beat a
    sample's own; this metric only counts samples. ``compute`` reduces one tensor over the ranks.

    Args:
        k: A sample is right when fewer than ``k`` classes beat its own.
        num_samples: Size of the set, if every update names its samples by index. Samples that a padding sampler
            repeats then count once, so that any number of ranks gives the numbers of one.
        **kwargs: Passed to ``torchmetrics.Metric``.

    Raises:
        ValueError: When ``k`` or ``num_samples`` is below 1.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    correct: Tensor
    total: Tensor
    best: Tensor

    def __init__(self, k: int = 1, *, num_samples: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if k < 1:
            raise ValueError(f"k={k} must be at least 1")
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"num_samples={num_samples} must be at least 1, or None to count samples as they come")
        self.k = k
        self.num_samples = num_samples
        if num_samples is None:
            self.add_state("correct", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
            self.add_state("total", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        else:
            self.add_state("best", torch.full((num_samples,), _NEVER), dist_reduce_fx="min")

    def update(self, ranks: Tensor, index: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            ranks: How many classes beat each sample's own, shape (b,), integers.
            index: Which sample of the set each entry is, shape (b,); with ``num_samples`` only, and then needed.

        Raises:
            ValueError: On a wrong shape, an index out of range, or an index given or missing against ``num_samples``.
        """
        index = check_index(ranks, index, self.num_samples, "ranks")
        if index is None:
            self.correct += (ranks < self.k).sum()
            self.total += ranks.numel()
        else:
            self.best.scatter_reduce_(0, index, ranks.long(), "amin")

    def compute(self) -> Tensor:
        """Share of right samples, float64 in [0, 1]; NaN when no sample was counted."""
        if self.num_samples is None:
            return self.correct.double() / self.total
        seen = self.best != _NEVER
        return (self.best[seen] < self.k).sum().double() / seen.sum()


@checked
class MeanTargetCosine(Metric):
    """Mean cosine of a sample to the center of its own class (the APCS of the Partial FC papers).

    Args:
        num_samples: As for :class:`ShardedTopK`.
        **kwargs: Passed to ``torchmetrics.Metric``.

    Raises:
        ValueError: When ``num_samples`` is below 1.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    cosine_sum: Tensor
    total: Tensor
    cosine: Tensor

    def __init__(self, *, num_samples: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"num_samples={num_samples} must be at least 1, or None to count samples as they come")
        self.num_samples = num_samples
        if num_samples is None:
            self.add_state("cosine_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state("total", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        else:
            self.add_state("cosine", torch.full((num_samples,), -torch.inf, dtype=torch.float64), dist_reduce_fx="max")

    def update(self, cosines: Tensor, index: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            cosines: Cosine of each sample to its own center, shape (b,), the second result of ``head.target_ranks``.
            index: As for :meth:`ShardedTopK.update`.

        Raises:
            ValueError: As :meth:`ShardedTopK.update`.
        """
        cosines = cosines.detach()
        index = check_index(cosines, index, self.num_samples, "cosines")
        if index is None:
            self.cosine_sum += cosines.double().sum()
            self.total += cosines.numel()
        else:
            self.cosine.scatter_reduce_(0, index, cosines.to(self.cosine.dtype), "amax")

    def compute(self) -> Tensor:
        """Mean cosine, float64 in [-1, 1]; NaN when no sample was counted."""
        if self.num_samples is None:
            return self.cosine_sum / self.total
        return self.cosine[self.cosine != -torch.inf].mean()


def check_index(values: Tensor, index: Tensor | None, num_samples: int | None, name: str) -> Tensor | None:
    """Check the shape of a batch and that an index comes exactly when the metric counts by sample.

    Raises:
        ValueError: See :meth:`ShardedTopK.update`.
    """
    if values.ndim != 1:
        raise ValueError(f"{name} must have shape (b,), got {tuple(values.shape)}")
    if (index is None) != (num_samples is None):
        raise ValueError("index and num_samples go together: give both to count every sample once, or neither")
    if index is None or num_samples is None:
        return None
    if index.shape != values.shape:
        raise ValueError(f"index must have the shape of {name} {tuple(values.shape)}, got {tuple(index.shape)}")
    if len(index) and (int(index.min()) < 0 or int(index.max()) >= num_samples):
        raise ValueError(f"index reaches from {int(index.min())} to {int(index.max())}, outside [0, {num_samples})")
    return index.long()
