"""What a network knows of identities it was trained on, beside those that it never saw."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lightning_pfc.plots.canvas import COLOURS, FAINT, INK, dress, new_figure, write


class Gap(NamedTuple):
    """Shares in [0, 1]: of trained identities, of held-out ones, and the 95 % interval of the latter or None."""

    trained: float
    held_out: float
    interval: tuple[float, float] | None


def plot_gap(
    gaps: Mapping[str, Gap], path: str | os.PathLike[str], *, title: str = "Trained and held-out identities"
) -> Path:
    """Two bars for each figure: how far the held-out identities are behind.

    Args:
        gaps: by the name of the figure.
        path: PNG to write.
        title: of the picture.

    Returns:
        The path written.

    Raises:
        ValueError: without any figure.
    """
    if not gaps:
        raise ValueError("gaps is empty; give at least one figure")
    figure = new_figure(height=1.4 + 1.1 * len(gaps))
    axes = figure.subplots()
    dress(axes, title, "share found", "")
    names, ticks = [], []
    for row, (name, gap) in enumerate(gaps.items()):
        high = gap.held_out if gap.interval is None else gap.interval[1]  # figures stand behind it
        for offset, value, end, colour, who in (
            (0.2, gap.trained, gap.trained, FAINT, "trained"),
            (-0.2, gap.held_out, high, COLOURS[0], "held out"),
        ):
            axes.barh(row + offset, value, height=0.36, color=colour)
            axes.text(
                end + 0.015, row + offset, f"{value:.1%}", va="center", fontsize=9, color=INK
            )  # behind the interval
            names.append(f"{name}, {who}")
            ticks.append(row + offset)
        if gap.interval is not None:
            low, high = gap.interval
            axes.plot([low, high], [row - 0.2] * 2, color=INK, linewidth=1.4, marker="|", markersize=9)
    axes.set_yticks(ticks, names, fontsize=9)
    axes.set_xlim(0, 1.12)  # room for a figure behind a full bar
    return write(figure, path)
