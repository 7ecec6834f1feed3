"""What validation and test measure: pairs of unseen identities, or the classes that were trained.

A data module says which by ``verification_sets(stage)`` and ``labelled_sets(stage)`` (stage "validate" or "test"):
named sets in the order of its loaders, those with pairs first. Without such a data module every loader is a closed set.

Names of the results, ``NAME`` being that of the set ("val", "test", "heldout"):

* open set: ``NAME/accuracy`` (10-fold), ``NAME/auc``, ``NAME/tar@far=1e-2``, ``NAME/tar@far=1e-3``,
  ``NAME/separation``;
* closed set: ``NAME/loss``, ``NAME/top1``, ``NAME/top5``, ``NAME/target_cosine``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from lightning_pfc.metrics import MeanTargetCosine, ShardedTopK, VerificationMetric
from lightning_pfc.metrics.verification import PairsLike, verification_metrics

if TYPE_CHECKING:
    from lightning_pfc.module import PartialFCModule


class PairScores(NamedTuple):
    """Cosines of pairs, for plots.

    Attributes:
        score: (p,) float64 cosines.
        same: (p,) bool.
        pair: (p,) int64, which of the set's pairs each is.
    """

    score: Tensor
    same: Tensor
    pair: Tensor


def separation(scores: PairScores) -> Tensor:
    """How far apart genuine and impostor cosines lie, in their standard deviations (the decidability index d').

    Unlike rates it still grows where all pairs are told apart, so it can say which of two good models is better.
    """
    genuine, impostor = scores.score[scores.same], scores.score[~scores.same]
    spread = (genuine.var(correction=0) + impostor.var(correction=0)) / 2
    return (genuine.mean() - impostor.mean()) / spread.sqrt().clamp_min(1e-6)


class Evaluation(ABC):
    """Measures one set; :meth:`compute` is a collective over all ranks."""

    name: str

    @abstractmethod
    def update(self, module: PartialFCModule, batch: Sequence[Any]) -> None:
        """Take a batch of the set's loader."""

    @abstractmethod
    def compute(self) -> dict[str, Tensor]:
        """Results by full name, the same on every rank."""


class VerificationEvaluation(Evaluation):
    """Verification of pairs; batches are (images, index (b,) int64 of each image in the set).

    Args:
        name: of the set.
        pairs: with ``first``, ``second``, ``same``, and perhaps ``fold``: the accuracy is over the pairs of folds 0 and
            up.
        device: where embeddings are collected.
    """

    def __init__(self, name: str, pairs: PairsLike, device: torch.device | str = "cpu") -> None:
        self.name = name
        self.metrics = verification_metrics(pairs, prefix=f"{name}/").to(device)
        self.scores: PairScores | None = None
        self.embeddings: Tensor | None = None

    def update(self, module: PartialFCModule, batch: Sequence[Any]) -> None:
        """Embed the images, and their mirror images where the model is judged by both."""
        known = getattr(module, "preprocessing", None)
        embeddings = module(batch[0]) if known is None else known.embed(module, batch[0])
        self.metrics.update(embeddings, batch[1])

    def compute(self) -> dict[str, Tensor]:
        """The metrics; the scores of all pairs and the embeddings of all images (N, D) stay here."""
        values = {name: value.float() for name, value in self.metrics.compute().items()}
        whole = self.metrics[f"{self.name}/auc"]
        assert isinstance(whole, VerificationMetric)
        self.scores = PairScores(*whole.pair_scores())
        self.embeddings = whole.image_embeddings()
        values[f"{self.name}/separation"] = separation(self.scores).float()
        self.metrics.reset()
        return values


class ClosedSetEvaluation(Evaluation):
    """Classification into the trained classes; batches are (images, labels (b,) int64)."""

    def __init__(self, module: PartialFCModule, name: str) -> None:
        self.name = name
        metrics: dict[str, Metric] = {
            "loss": MeanMetric(),
            "top1": ShardedTopK(1),
            "top5": ShardedTopK(5),
            "target_cosine": MeanTargetCosine(),
        }
        self.metrics = {key: metric.to(module.device) for key, metric in metrics.items()}

    def update(self, module: PartialFCModule, batch: Sequence[Any]) -> None:
        """Rank every class of every rank for each image; a collective, as the head is."""
        images, labels = batch[0], batch[1]
        embeddings = module(images)
        ranks, cosine = module.head.target_ranks(embeddings, labels)
        self.metrics["loss"].update(module.training_loss(embeddings, batch), weight=len(labels))
        self.metrics["top1"].update(ranks)
        self.metrics["top5"].update(ranks)
        self.metrics["target_cosine"].update(cosine)

    def compute(self) -> dict[str, Tensor]:
        """The metrics over all ranks."""
        values = {f"{self.name}/{key}": metric.compute().float() for key, metric in self.metrics.items()}
        for metric in self.metrics.values():
            metric.reset()
        return values


def make_evaluations(module: PartialFCModule, stage: str) -> list[Evaluation]:
    """One evaluation per loader of a stage, "val" or "test", as the data module describes its sets."""
    data: Any = getattr(module.trainer, "datamodule", None)
    sought = "validate" if stage == "val" else "test"
    pairs = data.verification_sets(sought) if hasattr(data, "verification_sets") else {}
    closed = data.labelled_sets(sought) if hasattr(data, "labelled_sets") else {}
    found: list[Evaluation] = [
        VerificationEvaluation(name, verification.pairs, module.device) for name, verification in pairs.items()
    ]
    found += [ClosedSetEvaluation(module, name) for name in closed]
    return found or [ClosedSetEvaluation(module, stage)]
