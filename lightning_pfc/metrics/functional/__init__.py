"""Pure functions behind the metrics: tensors in, numbers out, no state and no process group."""

from __future__ import annotations

from lightning_pfc.metrics.functional.curves import (
    OperatingPoint,
    RocCurve,
    area_under_roc,
    equal_error_rate,
    roc_curve,
    tar_at_far,
)
from lightning_pfc.metrics.functional.kfold import (
    KFoldAccuracy,
    KFoldTAR,
    fold_of_pair,
    grid_thresholds,
    kfold_accuracy,
    kfold_tar_at_far,
)
from lightning_pfc.metrics.functional.pairs import cosine_from_squared_distance, pair_squared_distances

__all__ = [
    "KFoldAccuracy",
    "KFoldTAR",
    "OperatingPoint",
    "RocCurve",
    "area_under_roc",
    "cosine_from_squared_distance",
    "equal_error_rate",
    "fold_of_pair",
    "grid_thresholds",
    "kfold_accuracy",
    "kfold_tar_at_far",
    "pair_squared_distances",
    "roc_curve",
    "tar_at_far",
]
