"""What class centers and samples look like from each other, as metrics.

Names follow the Partial FC papers (arXiv:2010.05222, arXiv:2203.15565): APCS, the average cosine of a sample to its own
center; MICS, the largest cosine of a center to another center; AMNCS, the average of a sample's largest cosine to a
center of another class.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_pfc.checked import checked
from lightning_pfc.distributed.collectives import all_reduce
from lightning_pfc.heads.partial_fc import PartialFC
from lightning_pfc.metrics.nearest_centers import (
    Collision,
    NearestCenters,
    nearest_centers,
    target_and_negative_cosines,
    worst_collisions,
)

__all__ = [
    "CenterDiagnostics",
    "Collision",
    "NearestCenters",
    "SampleDiagnostics",
    "nearest_centers",
    "target_and_negative_cosines",
    "worst_collisions",
]

COSINE_BINS = 200
NORM_BINS = 160
NORM_RANGE = (-4.0, 4.0)  # decimal logarithm
_BIRTH_ROWS = 8192


@checked
class CenterDiagnostics(Metric):
    """State of the class centers: MICS, lengths, dead and colliding classes.

    ``update(head)`` is a collective (see :func:`nearest_centers`); ``compute`` adds the shards' sums up and gives

    * ``mics``: mean over classes of the largest cosine to another center; ``mics_max``: the largest of all;
    * ``norm``: mean length of the centers;
    * ``dead``: classes whose center is not finite or shorter than ``dead_norm`` times the mean length;
    * ``untouched``: classes whose center is still exactly the one it was born with: never a positive, nor a negative;
    * ``colliding``: classes with another center at a cosine above ``collision``: one identity under two names, perhaps.

    Histograms over the classes: ``cosine_histogram`` of the MICS (bins over [-1, 1]) and ``norm_histogram`` of the
    lengths (bins over the decimal logarithms ``NORM_RANGE``).

    Args:
        collision: Cosine above which two centers collide.
        dead_norm: Share of the mean length below which a center is dead.
        chunk: As for :func:`nearest_centers`.
        **kwargs: Passed to ``torchmetrics.Metric``.

    Raises:
        ValueError: When ``collision`` is no cosine or ``dead_norm`` no share.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    sums: Tensor
    highest: Tensor
    cosine_histogram: Tensor
    norm_histogram: Tensor

    def __init__(self, *, collision: float = 0.7, dead_norm: float = 0.01, chunk: int = 2048, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not -1.0 <= collision <= 1.0:
            raise ValueError(f"collision={collision} is no cosine; it must lie in [-1, 1]")
        if not 0.0 <= dead_norm < 1.0:
            raise ValueError(f"dead_norm={dead_norm} must lie in [0, 1)")
        self.collision, self.dead_norm, self.chunk = collision, dead_norm, chunk
        self.last: NearestCenters | None = None
        # classes, sum of MICS, sum of lengths, finite lengths, dead, untouched, colliding
        self.add_state("sums", torch.zeros(7, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("highest", torch.tensor(-1.0), dist_reduce_fx="max")
        self.add_state("cosine_histogram", torch.zeros(COSINE_BINS, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("norm_histogram", torch.zeros(NORM_BINS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, head: PartialFC) -> None:
        """Look at all centers. A collective over the ranks of the head; this shard's part stays in :attr:`last`."""
        found = nearest_centers(head, chunk=self.chunk)
        self.last = found
        finite = found.norm.isfinite()
        lengths = torch.stack([found.norm[finite].double().sum(), finite.double().sum()])
        mean = all_reduce(lengths.clone(), head.comm.shard_group)
        dead = ~finite | (found.norm < self.dead_norm * mean[0] / mean[1].clamp(min=1))
        if head.comm.rank >= head.comm.shard_size:
            return  # another copy of the same classes is counted on the first ranks
        counts = [len(finite), found.cosine.double().sum(), *lengths, dead.sum(), _untouched(head)]
        counts.append((found.cosine > self.collision).sum())
        self.sums += torch.tensor([float(c) for c in counts], dtype=torch.float64, device=self.sums.device)
        self.highest = torch.maximum(self.highest, found.cosine.max().to(self.highest.device))
        self.cosine_histogram += _cosine_histogram(found.cosine).to(self.cosine_histogram.device)
        self.norm_histogram += _norm_histogram(found.norm[finite]).to(self.norm_histogram.device)

    def compute(self) -> dict[str, Tensor]:
        """The numbers by name, float64 scalars."""
        classes, mics, length, finite, dead, untouched, colliding = self.sums.unbind()
        return {
            "mics": mics / classes,
            "mics_max": self.highest.double(),
            "norm": length / finite,
            "dead": dead,
            "untouched": untouched,
            "colliding": colliding,
        }


@checked
class SampleDiagnostics(Metric):
    """Samples against centers: APCS, AMNCS split into hard samples and noise, and the lengths of embeddings.

    A sample is *misplaced* when another class's center is nearer than its own. The papers give no sharp line between a
    hard sample and a wrong label; here a misplaced sample is *noise* when the other center is near in absolute terms
    (cosine above ``noise_cosine``, where the published inter-class filter draws its line), and *hard* otherwise.

    ``compute`` gives ``apcs``, ``amncs``, ``amncs_hard``, ``amncs_noise`` (NaN without such samples), ``hard`` and
    ``noise`` (shares of all samples) and ``norm`` (mean length of embeddings). Histograms over the samples:
    ``target_histogram`` and ``negative_histogram`` of both cosines, ``norm_histogram`` of the lengths, with the bins of
    :class:`CenterDiagnostics`.

    Args:
        noise_cosine: See above.
        **kwargs: Passed to ``torchmetrics.Metric``.

    Raises:
        ValueError: When ``noise_cosine`` is no cosine.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    sums: Tensor
    target_histogram: Tensor
    negative_histogram: Tensor
    norm_histogram: Tensor

    def __init__(self, *, noise_cosine: float = 0.4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not -1.0 <= noise_cosine <= 1.0:
            raise ValueError(f"noise_cosine={noise_cosine} is no cosine; it must lie in [-1, 1]")
        self.noise_cosine = noise_cosine
        # samples, sums of: target, negative, length; hard count, hard negative, noise count, noise negative
        self.add_state("sums", torch.zeros(8, dtype=torch.float64), dist_reduce_fx="sum")
        for name, bins in (("target", COSINE_BINS), ("negative", COSINE_BINS), ("norm", NORM_BINS)):
            self.add_state(f"{name}_histogram", torch.zeros(bins, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, head: PartialFC, embeddings: Tensor, labels: Tensor) -> None:
        """Count this rank's samples. A collective over the ranks of the head."""
        embeddings = embeddings.detach()
        target, negative = target_and_negative_cosines(head, embeddings, labels)
        norm = torch.linalg.vector_norm(embeddings.float(), dim=1)
        misplaced = negative > target
        noise = misplaced & (negative > self.noise_cosine)
        hard = misplaced & ~noise
        far = negative.double()
        values = [len(target), target.double().sum(), far.sum(), norm.double().sum()]
        values += [hard.sum(), far[hard].sum(), noise.sum(), far[noise].sum()]
        self.sums += torch.tensor([float(v) for v in values], dtype=torch.float64, device=self.sums.device)
        self.target_histogram += _cosine_histogram(target).to(self.target_histogram.device)
        self.negative_histogram += _cosine_histogram(negative).to(self.negative_histogram.device)
        self.norm_histogram += _norm_histogram(norm).to(self.norm_histogram.device)

    def compute(self) -> dict[str, Tensor]:
        """The numbers by name, float64 scalars."""
        samples, target, negative, norm, hard, hard_negative, noise, noise_negative = self.sums.unbind()
        return {
            "apcs": target / samples,
            "amncs": negative / samples,
            "amncs_hard": hard_negative / hard,
            "amncs_noise": noise_negative / noise,
            "hard": hard / samples,
            "noise": noise / samples,
            "norm": norm / samples,
        }


def _untouched(head: PartialFC) -> int:
    """How many classes of this shard still have the center they were born with; a few rows are drawn at a time."""
    weight, same = head.weight.detach(), 0
    for low in range(0, len(weight), _BIRTH_ROWS):
        part = weight[low : low + _BIRTH_ROWS]
        born = head.initial_centers.fill_(torch.empty_like(part), head.shard.start + low, head.seed)
        same += int((part == born).all(1).sum())
    return same


def _cosine_histogram(cosines: Tensor) -> Tensor:
    place = ((cosines + 1.0) * (COSINE_BINS / 2)).long().clamp_(0, COSINE_BINS - 1)
    return torch.bincount(place, minlength=COSINE_BINS)


def _norm_histogram(norms: Tensor) -> Tensor:
    low, high = NORM_RANGE
    place = (norms.clamp(min=1e-30).log10() - low) * (NORM_BINS / (high - low))
    return torch.bincount(place.long().clamp_(0, NORM_BINS - 1), minlength=NORM_BINS)
