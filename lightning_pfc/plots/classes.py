"""Histograms that were counted elsewhere: cosines and lengths of centers and samples."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from lightning_pfc.plots.canvas import COLOURS, dress, new_figure, write


def plot_counts(
    panels: Mapping[str, Mapping[str, Tensor]],
    edges: Mapping[str, tuple[float, float]],
    path: str | os.PathLike[str],
    *,
    title: str = "Class centers",
    logarithmic: frozenset[str] = frozenset(),
) -> Path:
    """Counted histograms side by side, each curve in per cent of its sum.

    Args:
        panels: Label of the x axis to the histograms in that panel by name, each (bins,) counts.
        edges: Label of the x axis to the first and the last edge; decimal logarithms where the axis is logarithmic.
        path: PNG to write.
        title: Title of the picture.
        logarithmic: Panels whose x axis is logarithmic.

    Returns:
        The path written.

    Raises:
        ValueError: Without any panel, or when a panel has no count at all.
    """
    if not panels:
        raise ValueError("panels is empty; give at least one")
    figure = new_figure(5.4 * len(panels), 4.0)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (label, histograms) in zip(row, panels.items(), strict=True):
        dress(axes, "", label, "share, %")
        used: list[int] = []
        for colour, (name, counts) in zip(COLOURS, histograms.items(), strict=False):
            values = counts.detach().cpu().double().numpy()
            if not values.sum() > 0:
                raise ValueError(f"{name} has no count; there is nothing to draw")
            borders = np.linspace(*edges[label], len(values) + 1)
            if label in logarithmic:
                borders = 10.0**borders
            axes.stairs(100 * values / values.sum(), borders, color=colour, fill=True, alpha=0.35)
            axes.stairs(100 * values / values.sum(), borders, color=colour, linewidth=1.3, label=name)
            filled = np.flatnonzero(values)
            used += [int(filled[0]), int(filled[-1])]
        if label in logarithmic:
            axes.set_xscale("log")
        low, high = max(0, min(used) - 3), min(len(borders) - 1, max(used) + 4)
        axes.set_xlim(borders[low], borders[high])
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
    return write(figure, path)
