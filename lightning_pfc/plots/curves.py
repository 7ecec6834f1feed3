"""Curves over training steps."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from lightning_pfc.plots.canvas import COLOURS, Array, as_array, dress, new_figure, write


def plot_loss(
    steps: Sequence[float] | Any,
    losses: Sequence[float] | Any,
    path: str | os.PathLike[str],
    *,
    title: str = "Training loss",
    validation: Mapping[str, tuple[Any, Any]] | None = None,
) -> Path:
    """Loss over steps: every value faint, a running mean strong; optionally metrics on a second axis.

    Args:
        steps: Optimizer steps, shape (T,).
        losses: Loss at each step, shape (T,); values that are not finite are marked at the top.
        path: PNG to write.
        title: Title of the picture.
        validation: Name of a metric in [0, 1] to its (steps, values), drawn on a second axis on the right.

    Returns:
        The path written.

    Raises:
        ValueError: On arrays that are empty, not one-dimensional or of unequal length.
    """
    x, y = _same_length(steps, losses, "steps", "losses")
    figure = new_figure()
    axes = figure.subplots()
    dress(axes, title, "step", "loss")
    finite = np.isfinite(y)
    marker = "o" if finite.sum() < 3 else ""
    axes.plot(x[finite], y[finite], color=COLOURS[0], alpha=0.3, linewidth=0.9, marker=marker, markersize=3)
    if finite.sum() >= 3:
        axes.plot(x[finite], _smooth(y[finite]), color=COLOURS[0], linewidth=2, label="loss, running mean")
    if not finite.all():
        top = axes.get_ylim()[1]
        count = int((~finite).sum())
        axes.plot(x[~finite], np.full(count, top), "v", color=COLOURS[1], label=f"not finite ({count})", clip_on=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    if validation:
        right = axes.twinx()
        right.spines[["top"]].set_visible(False)
        right.set_ylabel("validation")
        for colour, (name, (vx, vy)) in zip(COLOURS[1:], validation.items(), strict=False):
            vx, vy = _same_length(vx, vy, f"steps of {name}", name)
            right.plot(vx, vy, color=colour, marker="o", markersize=4, linewidth=1.4, label=name)
        handles = axes.get_legend_handles_labels()
        more = right.get_legend_handles_labels()
        right.legend(handles[0] + more[0], handles[1] + more[1], frameon=False, loc="center right")
    elif axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    return write(figure, path)


def plot_learning_rate(
    steps: Sequence[float] | Any,
    rates: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    title: str = "Learning rate",
) -> Path:
    """Learning rate of each parameter group over steps; groups with the same rates share one line.

    Args:
        steps: Optimizer steps, shape (T,).
        rates: Name of a parameter group to its rates, shape (T,) each.
        path: PNG to write.
        title: Title of the picture.

    Returns:
        The path written.

    Raises:
        ValueError: Without any group, or on arrays of unequal length.
    """
    if not rates:
        raise ValueError("rates is empty; give at least one parameter group")
    lines: list[tuple[list[str], Array, Array]] = []
    for name, values in rates.items():
        x, y = _same_length(steps, values, "steps", f"rates[{name!r}]")
        for names, _, other in lines:
            if np.array_equal(y, other):
                names.append(name)
                break
        else:
            lines.append(([name], x, y))
    figure = new_figure(height=3.6)
    axes = figure.subplots()
    dress(axes, title, "step", "learning rate")
    for colour, (names, x, y) in zip(COLOURS * len(lines), lines, strict=False):
        axes.plot(x, y, color=colour, linewidth=2, label=", ".join(names))
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
    axes.legend(frameon=False)
    return write(figure, path)


def _smooth(values: Array) -> Array:
    """Centred running mean over about a fortieth of the curve, with shorter windows at both ends."""
    half = max(1, len(values) // 80)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return np.asarray((sums[high] - sums[low]) / (high - low), dtype=np.float64)


def _same_length(steps: object, values: object, steps_name: str, name: str) -> tuple[Array, Array]:
    x, y = as_array(steps, steps_name), as_array(values, name)
    if x.shape != y.shape:
        raise ValueError(f"{steps_name} has {len(x)} entries but {name} has {len(y)}; give one of each per step")
    return x, y
