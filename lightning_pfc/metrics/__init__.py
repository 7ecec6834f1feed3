"""Metrics for open-set recognition, synchronised over ranks by torchmetrics."""

from __future__ import annotations

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
    "MeanTargetCosine",
    "ShardedTopK",
    "TARAtFAR",
    "VerificationAUC",
    "VerificationAccuracy",
    "VerificationMetric",
    "rate_name",
    "verification_metrics",
]
