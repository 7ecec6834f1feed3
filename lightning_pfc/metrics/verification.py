"""Verification of pairs as torchmetrics: each rank embeds its part, all ranks report the numbers of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities import rank_zero_warn

from lightning_pfc.checked import checked
from lightning_pfc.metrics.functional.checks import check_rate
from lightning_pfc.metrics.functional.curves import area_under_roc, tar_at_far
from lightning_pfc.metrics.functional.kfold import fold_of_pair, kfold_accuracy
from lightning_pfc.metrics.functional.pairs import cosine_from_squared_distance, pair_squared_distances


class PairsLike(Protocol):
    """Pairs of images by row, each of shape (P,): ``first`` and ``second`` int64, ``same`` bool.

    An attribute ``fold`` (P,) int64, if there is one, is the fold of each pair for the accuracy, -1 for pairs that
    count in rates only; without it the folds are contiguous in pair order.
    """

    @property
    def first(self) -> Tensor:
        """Row of the first image."""

    @property
    def second(self) -> Tensor:
        """Row of the second image."""

    @property
    def same(self) -> Tensor:
        """Whether both show one identity."""


class _LastDistances:
    """What was computed last, for the other metrics of the same pairs: a short run spent most of its tests on it."""

    def __init__(self) -> None:
        self.known: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def of(self, embeddings: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """(P,) squared distances, see :func:`~lightning_pfc.metrics.functional.pairs.pair_squared_distances`."""
        asked = (embeddings, first, second)
        if self.known is None or not all(map(_equal, self.known, asked)):
            self.known = (*asked, pair_squared_distances(*asked))
        return self.known[3].clone()


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


@checked
class VerificationMetric(Metric):
    """Base of the metrics over pairs: collects embeddings by image index.

    Every rank may embed any images, in any order, more than once (samplers that pad do that): the first embedding of an
    image counts, in rank order. Metrics of one set of pairs put into a ``MetricCollection`` share what they collect.

    Collectives: none in ``update``; ``compute`` and :meth:`pair_scores` gather embeddings and indices over all ranks
    (the machinery of torchmetrics), so every rank must call them.

    Args:
        pairs: Object with ``first``, ``second`` (int64) and ``same`` (bool), each (P,), indexing the images.
        incomplete: What ``compute`` does when images of some pairs were never given: ``"warn"`` scores the other pairs
            (NaN if none is left), as a sanity check or ``limit_val_batches`` needs; ``"raise"`` refuses.
        **kwargs: Passed to ``torchmetrics.Metric``.

    Raises:
        ValueError: On pairs of unequal length, negative indices or an unknown ``incomplete``.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    embeddings: list[Tensor]
    index: list[Tensor]

    def __init__(self, pairs: PairsLike, *, incomplete: Literal["warn", "raise"] = "warn", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if incomplete not in ("warn", "raise"):
            raise ValueError(f"incomplete={incomplete!r} is unknown; use 'warn' or 'raise'")
        self.first = torch.as_tensor(pairs.first, dtype=torch.int64).cpu()
        self.second = torch.as_tensor(pairs.second, dtype=torch.int64).cpu()
        self.same = torch.as_tensor(pairs.same, dtype=torch.bool).cpu()
        fold = getattr(pairs, "fold", None)
        self.fold = None if fold is None else torch.as_tensor(fold, dtype=torch.int64).cpu()
        if self.fold is not None and len(self.fold) != len(self.first):
            raise ValueError(f"pairs has {len(self.first)} pairs but fold has {len(self.fold)} entries")
        if not len(self.first) == len(self.second) == len(self.same):
            lengths = f"{len(self.first)}, {len(self.second)}, {len(self.same)}"
            raise ValueError(f"pairs has first, second and same of lengths {lengths}; they must be equal")
        if len(self.first) and min(int(self.first.min()), int(self.second.min())) < 0:
            raise ValueError("pairs holds a negative image index; images are counted from 0")
        self.num_images = 1 + max(int(self.first.max()), int(self.second.max())) if len(self.first) else 0
        self.incomplete = incomplete
        self._last = _LastDistances()
        # Flat states: a rank that saw no image can then still take part in the gather, whatever the width.
        self.add_state("embeddings", [], dist_reduce_fx="cat")
        self.add_state("index", [], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, index: Tensor) -> None:
        """Take embeddings of some images.

        Args:
            embeddings: Shape (b, D), any float dtype (kept as float32); they need not be normalised.
            index: Which image each row shows, shape (b,), integers.

        Raises:
            ValueError: On a wrong shape or a negative index.
        """
        if embeddings.ndim != 2 or index.shape != embeddings.shape[:1]:
            raise ValueError(
                f"embeddings must be (b, D) and index (b,), got {tuple(embeddings.shape)} and {tuple(index.shape)}"
            )
        if len(index) and int(index.min()) < 0:
            raise ValueError(f"index holds {int(index.min())}; images are counted from 0")
        self.embeddings.append(embeddings.detach().float().reshape(-1))
        self.index.append(index.detach().long())

    def sync(
        self,
        dist_sync_fn: Callable[..., Any] | None = None,
        process_group: Any | None = None,
        should_sync: bool = True,
        distributed_available: Callable[..., Any] | None = None,
    ) -> None:
        """Gather over ranks, as ``torchmetrics.Metric.sync``; a rank that saw nothing takes part too."""
        if isinstance(self.index, list) and not self.index:
            self.embeddings.append(torch.zeros(0, device=self.device))
            self.index.append(torch.zeros(0, dtype=torch.int64, device=self.device))
        super().sync(dist_sync_fn, process_group, should_sync, distributed_available)

    def reset(self) -> None:
        """As ``torchmetrics.Metric.reset``."""
        super().reset()
        self._last.known = None

    def pair_scores(self) -> tuple[Tensor, Tensor, Tensor]:
        """Cosine of every pair whose images were given. A collective over all ranks.

        Returns:
            Cosines (p,) float64, same (p,) bool, and which of the pairs they are (p,) int64, all on the CPU.

        Raises:
            ValueError: When pairs are missing and ``incomplete="raise"``.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync):
            distances, same, which = self._distances()
        return cosine_from_squared_distance(distances), same, which

    def image_embeddings(self) -> Tensor:
        """The first embedding of every image, (N, D) float32; NaN for one that was never given. A collective."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync):
            index, flat = _joined(self.index, torch.int64), _joined(self.embeddings, torch.float32)
            rows = flat.view(len(index), -1) if len(index) else flat.view(0, 1)
            found = torch.full(
                (max(self.num_images, int(index.max()) + 1 if len(index) else 0), rows.shape[1]), math.nan
            )
            found[index.flip(0)] = rows.flip(0)
            return found

    def compute(self) -> Tensor:
        """The metric over all pairs, a float64 scalar; NaN when no number can be given (see ``incomplete``)."""
        distances, same, which = self._distances()
        if not bool(same.any()) or bool(same.all()):
            self._complain(f"{type(self).__name__} has no pair of both kinds among the images seen so far")
            return torch.tensor(math.nan, dtype=torch.float64)
        return torch.tensor(self._score(distances, same, which), dtype=torch.float64)

    def _score(self, distances: Tensor, same: Tensor, which: Tensor) -> float:
        raise NotImplementedError

    def _distances(self) -> tuple[Tensor, Tensor, Tensor]:
        index, flat = _joined(self.index, torch.int64), _joined(self.embeddings, torch.float32)
        width = len(flat) // len(index) if len(index) else 0
        if width * len(index) != len(flat):
            raise ValueError("embeddings of several widths were given; all ranks and batches must use one")
        count = max(self.num_images, int(index.max()) + 1 if len(index) else 0)
        row_of_image = torch.full((count,), len(index))
        row_of_image.scatter_reduce_(
            0, index, torch.arange(len(index)), "amin"
        )  # the first embedding of an image stays
        row_of_image[row_of_image == len(index)] = -1
        first, second = row_of_image[self.first], row_of_image[self.second]
        which = ((first >= 0) & (second >= 0)).nonzero().squeeze(1)
        if len(which) < len(self.first):
            self._complain(
                f"{type(self).__name__}: {len(which)} of {len(self.first)} pairs could be scored, because "
                f"{int((row_of_image[: self.num_images] < 0).sum())} of {self.num_images} images were not embedded"
            )
        distances = self._last.of(flat.view(len(index), width), first[which], second[which])
        return distances, self.same[which], which

    def _complain(self, message: str) -> None:
        if self.incomplete == "raise":
            raise ValueError(f"{message}; embed every image of the set, or pass incomplete='warn'")
        rank_zero_warn(message)


@checked
class VerificationAccuracy(VerificationMetric):
    """k-fold verification accuracy, see :func:`~lightning_pfc.metrics.functional.kfold.kfold_accuracy`.

    Args:
        pairs: Pairs in protocol order, see :class:`VerificationMetric`.
        num_folds: Number of folds; None takes 10, or as many as ``pairs.fold`` names.
        thresholds: ``"grid"`` as published (steps of 0.01 on the squared distance) or ``"exact"``.
        **kwargs: Passed to :class:`VerificationMetric`.
    """

    def __init__(
        self,
        pairs: PairsLike,
        *,
        num_folds: int | None = None,
        thresholds: Literal["grid", "exact"] = "grid",
        **kwargs: Any,
    ) -> None:
        super().__init__(pairs, **kwargs)
        if num_folds is None:
            num_folds = 10 if self.fold is None else 1 + int(self.fold.max())
        if num_folds < 2:
            raise ValueError(f"num_folds={num_folds} must be at least 2: one fold is scored by the others' threshold")
        if thresholds not in ("grid", "exact"):
            raise ValueError(f"thresholds={thresholds!r} is unknown; use 'grid' or 'exact'")
        self.num_folds = num_folds
        self.thresholds: Literal["grid", "exact"] = thresholds

    def _score(self, distances: Tensor, same: Tensor, which: Tensor) -> float:
        fold = self.fold
        if len(which) < len(self.first):  # only part of the pairs: the folds of those that are there
            fold = (fold if fold is not None else fold_of_pair(len(self.first), self.num_folds))[which]
            if len(set(fold[fold >= 0].tolist())) < self.num_folds or len(set(same[fold >= 0].tolist())) < 2:
                self._complain(f"VerificationAccuracy has no pair in some of its {self.num_folds} folds")
                return math.nan
        return kfold_accuracy(distances, same, num_folds=self.num_folds, thresholds=self.thresholds, fold=fold).mean


@checked
class TARAtFAR(VerificationMetric):
    """True accept rate over all pairs at a false accept rate, exact; see ``functional.curves.tar_at_far``.

    Args:
        pairs: Pairs, see :class:`VerificationMetric`.
        far: False accept rate in (0, 1]. Below one over the number of impostor pairs no impostor is accepted.
        **kwargs: Passed to :class:`VerificationMetric`.
    """

    def __init__(self, pairs: PairsLike, *, far: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(pairs, **kwargs)
        self.far = check_rate(far, "far")

    def _score(self, distances: Tensor, same: Tensor, which: Tensor) -> float:
        return tar_at_far(-distances, same, self.far).tar


@checked
class VerificationAUC(VerificationMetric):
    """Area under the verification ROC, exact, ties count one half; see ``functional.curves.area_under_roc``."""

    def _score(self, distances: Tensor, same: Tensor, which: Tensor) -> float:
        return area_under_roc(-distances, same)


def rate_name(rate: float) -> str:
    """A rate as it appears in the name of a metric: ``0.001`` is ``"1e-3"``, ``0.02`` is ``"2e-2"``."""
    mantissa, exponent = f"{rate:e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def verification_metrics(
    pairs: PairsLike,
    *,
    fars: Sequence[float] = (1e-2, 1e-3),
    num_folds: int | None = None,
    prefix: str | None = None,
    **kwargs: Any,
) -> MetricCollection:
    """The usual verification numbers of one set: ``accuracy``, ``auc`` and ``tar@far=...`` for each rate.

    Args:
        pairs: Pairs in protocol order, see :class:`VerificationMetric`.
        fars: False accept rates.
        num_folds: As for :class:`VerificationAccuracy`.
        prefix: Put before every name, for example ``"test/"``.
        **kwargs: Passed to every metric, for example ``incomplete="raise"``.

    Returns:
        A collection whose members share the embeddings they collect.
    """
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": VerificationAccuracy(pairs, num_folds=num_folds, **kwargs),
        "auc": VerificationAUC(pairs, **kwargs),
    }
    for far in fars:
        metrics[f"tar@far={rate_name(far)}"] = TARAtFAR(pairs, far=far, **kwargs)
    last = _LastDistances()
    for metric in metrics.values():
        assert isinstance(metric, VerificationMetric)
        metric._last = last
    # All members keep the same state: say so, instead of letting the first update find out.
    return MetricCollection(metrics, prefix=prefix, compute_groups=[list(metrics)])


def _joined(state: list[Tensor] | Tensor, dtype: torch.dtype) -> Tensor:
    """A list state, or the tensor that it becomes after a sync, as one tensor on the CPU."""
    if isinstance(state, Tensor):
        return state.cpu()
    return torch.cat(state).cpu() if state else torch.zeros(0, dtype=dtype)
