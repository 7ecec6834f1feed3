"""Histograms that were counted elsewhere: cosines and lengths of centers and samples."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from lightning_pfc.plots.canvas import COLOURS, INK, dress, new_figure, write


def plot_counts(
    panels: Mapping[str, Mapping[str, Tensor]],
    edges: Mapping[str, tuple[float, float]],
    path: str | os.PathLike[str],
    *,
    title: str = "Class centers",
    logarithmic: Collection[str] = (),
) -> Path:
    """Counted histograms side by side, each curve in per cent of its sum; one without a count is left out.

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
    figure = new_figure(5.6 * len(panels), 4.2)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK)
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (label, histograms) in zip(row, panels.items(), strict=True):
        dress(axes, "", label, "share, %")
        counted = {name: counts.detach().cpu().double().numpy() for name, counts in histograms.items()}
        if not any(values.sum() > 0 for values in counted.values()):
            raise ValueError(f"the panel {label!r} has no count at all; there is nothing to draw")
        bins = len(next(iter(counted.values())))
        borders = np.linspace(*edges[label], bins + 1)
        if label in logarithmic:
            borders = 10.0**borders
            axes.set_xscale("log")
        used: list[int] = []
        for colour, (name, values) in zip(COLOURS, counted.items(), strict=False):
            if not values.sum() > 0:
                continue
            axes.stairs(100 * values / values.sum(), borders, color=colour, fill=True, alpha=0.3)
            axes.stairs(100 * values / values.sum(), borders, color=colour, linewidth=1.3, label=name)
            filled = np.flatnonzero(values)
            used += [int(filled[0]), int(filled[-1])]
        axes.set_xlim(borders[max(0, min(used) - 3)], borders[min(bins, max(used) + 4)])
        axes.set_ylim(0, axes.get_ylim()[1] * 1.3)  # room for the legend
        axes.legend(frameon=False, loc="upper left", fontsize=9)
    return write(figure, path)
