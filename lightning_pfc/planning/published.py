"""InsightFace's published memory table, beside what this head would need there.

The figures are those of ``recognition/arcface_torch/docs/speed_benchmark.md`` of deepinsight/insightface: megabytes per
GPU of eight V100 with 32 GB, ResNet-50 in mixed precision, D = 512, taken with the first version of its head.
"""

from __future__ import annotations

from typing import NamedTuple

from lightning_pfc.planning.memory import head_memory
from lightning_pfc.planning.setup import Setup

RANKS = 8
MODEL_PARALLEL = {
    125_000: 5306, 250_000: 5826, 500_000: 7114, 1_000_000: 9966, 1_400_000: 11178, 2_000_000: 13978, 4_000_000: 23238,
    5_500_000: 32188,
}  # fmt: skip
PARTIAL_FC = {
    125_000: 4868, 250_000: 5004, 500_000: 5202, 1_000_000: 5620, 1_400_000: 6056, 2_000_000: 6472, 4_000_000: 8284,
    5_500_000: 9854, 8_000_000: 12310, 16_000_000: 19950, 29_000_000: 32324,
}  # fmt: skip
RATE = 0.1
# Both columns are straight lines in the classes with one intercept, to within 5 %: 4 KiB for every class of a GPU
# (center and momentum) and 36 KB more for every class of a step (its rows gathered, normalised, their gradients, and
# the logits several times over).
OTHER = 4620  # MB: backbone, activations, context
STORED, SAMPLED = 4096, 35_500  # bytes a class


class Row(NamedTuple):
    """One row of the table, in MB per GPU.

    Attributes:
        classes: in all.
        rate: 1 for model parallel.
        published: as printed there.
        fitted: by the three constants of this module.
        ours: OTHER and what :func:`~lightning_pfc.planning.memory.head_memory` says.
    """

    classes: int
    rate: float
    published: int
    fitted: float
    ours: float


def insightface_table(batch: int = 64) -> list[Row]:
    """The published rows and the planned ones; ``batch`` per GPU is not said there, and 64 in MXNet's tables."""
    rows = []
    for rate, column in ((1.0, MODEL_PARALLEL), (RATE, PARTIAL_FC)):
        for classes, published in column.items():
            setup = Setup(classes=classes, ranks=RANKS, batch=batch, rate=rate)
            fitted = OTHER + classes / RANKS * (STORED + rate * SAMPLED) / 1e6
            rows.append(Row(classes, rate, published, fitted, OTHER + head_memory(setup).peak / 1e6))
    return rows
