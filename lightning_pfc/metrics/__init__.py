"""Metrics for open-set recognition, synchronised over ranks by torchmetrics."""

from __future__ import annotations

from lightning_pfc.metrics.centers import (
    CenterDiagnostics,
    SampleDiagnostics,
    nearest_centers,
    target_and_negative_cosines,
    worst_collisions,
)
from lightning_pfc.metrics.classification import MeanTargetCosine, ShardedTopK
from lightning_pfc.metrics.verification import (
    TARAtFAR,
    VerificationAccuracy,
    VerificationAUC,
    VerificationMetric,
    rate_name,
    verification_metrics,
)

__all__ = [
    "CenterDiagnostics",
    "MeanTargetCosine",
    "SampleDiagnostics",
    "ShardedTopK",
    "TARAtFAR",
    "VerificationAUC",
    "VerificationAccuracy",
    "VerificationMetric",
    "nearest_centers",
    "rate_name",
    "target_and_negative_cosines",
    "verification_metrics",
    "worst_collisions",
]
