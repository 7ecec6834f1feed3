"""The pictures people look at, each a function of arrays and a path; drawn without any display or global state."""

from __future__ import annotations

from lightning_pfc.plots.classes import plot_counts
from lightning_pfc.plots.curves import plot_learning_rate, plot_loss
from lightning_pfc.plots.gap import Gap, plot_gap
from lightning_pfc.plots.pairs import plot_hardest_pairs
from lightning_pfc.plots.verification import plot_det, plot_roc, plot_score_histogram

__all__ = [
    "Gap",
    "plot_counts",
    "plot_det",
    "plot_gap",
    "plot_hardest_pairs",
    "plot_learning_rate",
    "plot_loss",
    "plot_roc",
    "plot_score_histogram",
]
