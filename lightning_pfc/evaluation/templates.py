"""Template protocols (IJB-B, IJB-C): many images and video frames of a person make one template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lightning_pfc.checked import checked
from lightning_pfc.metrics.functional.checks import check_rate, check_scored_pairs
from lightning_pfc.metrics.functional.curves import cumulative_counts


@checked
@dataclass(frozen=True, kw_only=True)
class TemplateMode:
    """How images become a template; part of every number's name, because results of different modes are not comparable.

    Attributes:
        flip: Add the embedding of the mirrored image (F1).
        feature_norm: ``"keep"`` leaves the length of an image's embedding, so that better images weigh more; ``"unit"``
            makes them equal.
        detector: Weigh each image by its detector score (D1).
    """

    flip: bool = True
    feature_norm: Literal["keep", "unit"] = "keep"
    detector: bool = True

    def __post_init__(self) -> None:
        if self.feature_norm not in ("keep", "unit"):
            raise ValueError(f"feature_norm={self.feature_norm!r} is unknown; use 'keep' or 'unit'")

    @property
    def name(self) -> str:
        """For example ``F1-Nkeep-D1``."""
        return f"F{int(self.flip)}-N{self.feature_norm}-D{int(self.detector)}"


def template_features(
    features: Tensor,
    templates: Tensor,
    media: Tensor,
    *,
    detector_scores: Tensor | None = None,
    mode: TemplateMode | None = None,
) -> tuple[Tensor, Tensor]:
    """Pool image embeddings into templates: the mean of each medium, the sum over media, unit length.

    Args:
        features: Image embeddings, flip already added if the mode says so, (n, D), not normalised.
        templates: Template of each image, (n,) integers.
        media: Medium (video or still) of each image, (n,) integers; the same number in two templates is two media.
        detector_scores: Detector score of each image, (n,); needed when ``mode.detector``.
        mode: See :class:`TemplateMode`; None is the default one.

    Returns:
        Unit embeddings, (T, D) float64, and the template numbers they belong to, (T,) int64 ascending.

    Raises:
        ValueError: On wrong shapes, or when detector scores are needed and missing.
    """
    mode = mode or TemplateMode()
    for name, values in (("templates", templates), ("media", media), ("detector_scores", detector_scores)):
        if values is not None and values.shape != features.shape[:1]:
            raise ValueError(f"{name} must have one entry per image ({len(features)}), got {tuple(values.shape)}")
    features = features.double()
    if mode.feature_norm == "unit":
        norms = features.norm(dim=1, keepdim=True)
        features = features / torch.where(norms == 0, 1.0, norms)
    if mode.detector:
        if detector_scores is None:
            raise ValueError("detector_scores is missing but mode.detector is true; give them, or use detector=False")
        features = features * detector_scores.double()[:, None]
    pairs, group = torch.unique(torch.stack([templates.long(), media.long()], 1), dim=0, return_inverse=True)
    sums = features.new_zeros((len(pairs), features.shape[1])).index_add_(0, group, features)
    means = sums / torch.bincount(group, minlength=len(pairs)).to(sums)[:, None]
    numbers, owner = torch.unique(pairs[:, 0], return_inverse=True)
    pooled = means.new_zeros((len(numbers), features.shape[1])).index_add_(0, owner, means)
    lengths = pooled.norm(dim=1, keepdim=True)
    return pooled / torch.where(lengths == 0, 1.0, lengths), numbers


def template_scores(pooled: Tensor, numbers: Tensor, first: Tensor, second: Tensor, *, chunk: int = 1 << 17) -> Tensor:
    """Cosine of pairs of templates, (P,) float64.

    Args:
        pooled: Unit template embeddings, (T, D).
        numbers: Their template numbers, (T,) ascending.
        first: Template number of each pair's first side, (P,).
        second: Template number of its second side, (P,).
        chunk: Pairs at once.

    Returns:
        Cosines.

    Raises:
        ValueError: When a pair names a template that has no image.
    """
    rows = []
    for name, side in (("first", first), ("second", second)):
        row = torch.searchsorted(numbers, side.contiguous()).clamp(max=len(numbers) - 1)
        missing = numbers[row] != side
        if bool(missing.any()):
            raise ValueError(f"{name} names template {int(side[missing][0])}, which has no image")
        rows.append(row)
    parts = [
        (pooled[a] * pooled[b]).sum(1)
        for a, b in zip(torch.split(rows[0], chunk), torch.split(rows[1], chunk), strict=True)
    ]
    return torch.cat(parts)


def tpr_at_nearest_fpr(scores: Tensor, same: Tensor, fpr: float) -> float:
    """The number of the published IJB tables: the true positive rate at the point whose FPR is NEAREST to ``fpr``.

    The points are those of scikit-learn's ``roc_curve`` (collinear ones dropped); of equally near ones the last counts.
    The nearest point may lie above the rate asked for, and at 1e-6 it often does: use
    :func:`~lightning_pfc.metrics.functional.curves.tar_at_far` unless you compare with tables.

    Args:
        scores: Similarities, (P,).
        same: Whether a pair shows one identity, (P,) bool.
        fpr: False positive rate in (0, 1].

    Returns:
        True positive rate.

    Raises:
        ValueError: On wrong shapes, NaN, a rate outside (0, 1], or a missing kind of pairs.
    """
    fpr = check_rate(fpr, "fpr")
    scores, same = check_scored_pairs(scores, same, "scores")
    _, genuine, impostor = cumulative_counts(scores, same)
    tp, fp = genuine.cpu().numpy(), impostor.cpu().numpy()
    if len(tp) > 2:
        corner = np.append(np.insert(np.logical_or(np.diff(fp, 2), np.diff(tp, 2)), 0, True), True)
        tp, fp = tp[corner], fp[corner]
    tp, fp = np.insert(tp, 0, 0), np.insert(fp, 0, 0)
    distance = np.abs(fp / fp[-1] - fpr)[::-1]
    return float(tp[::-1][int(np.argmin(distance))] / tp[-1])
