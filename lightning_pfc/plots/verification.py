"""ROC, DET and score histograms of verification."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, PercentFormatter
from torch import Tensor

from lightning_pfc.metrics.functional import RocCurve
from lightning_pfc.plots.canvas import COLOURS, GENUINE, IMPOSTOR, INK, Array, dress, new_figure, write

_MOST_POINTS = 4000


def plot_roc(
    curves: Mapping[str, RocCurve],
    path: str | os.PathLike[str],
    *,
    marks: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6),
    title: str = "Verification ROC",
) -> Path:
    """True accept rate over the false accept rate on a logarithmic axis, one curve per set.

    A curve starts where one false accept is reached: below that rate the pairs say nothing.

    Args:
        curves: Name of a set to its curve, see ``metrics.functional.roc_curve``.
        path: PNG to write.
        marks: False accept rates at which the true accept rate is written beside the curve (with a single curve).
        title: Title of the picture.

    Returns:
        The path written.

    Raises:
        ValueError: Without any curve.
    """
    figure = new_figure()
    axes = figure.subplots()
    dress(axes, title, "false accept rate", "true accept rate")
    lowest_far, lowest_tar = _draw_steps(axes, curves, miss=False)
    if len(curves) == 1:
        curve = next(iter(curves.values()))
        for far in marks:
            if far * curve.num_impostor < 1:
                continue
            point = int(torch.searchsorted(curve.far, torch.tensor(far, dtype=curve.far.dtype), right=True)) - 1
            tar = float(curve.tar[point])
            axes.plot([far], [tar], "o", color=COLOURS[0], markersize=5, clip_on=False)
            axes.annotate(f"{tar:.4f}", (far, tar), xytext=(4, -13), textcoords="offset points", fontsize=9, color=INK)
    axes.set_xlim(10 ** np.floor(np.log10(lowest_far)), 1)
    floor = max(0.0, lowest_tar - 0.05 * (1.0 - lowest_tar) - 0.01)
    axes.set_ylim(floor, 1 + 0.02 * (1 - floor))
    axes.legend(frameon=False, loc="lower right")
    return write(figure, path)


def plot_det(
    curves: Mapping[str, RocCurve], path: str | os.PathLike[str], *, title: str = "Detection error trade-off"
) -> Path:
    """False reject rate over the false accept rate, both logarithmic; the dotted line is where they are equal.

    Args:
        curves: Name of a set to its curve, see ``metrics.functional.roc_curve``.
        path: PNG to write.
        title: Title of the picture.

    Returns:
        The path written.

    Raises:
        ValueError: Without any curve.
    """
    figure = new_figure(6.4, 5.4)
    axes = figure.subplots()
    dress(axes, title, "false accept rate", "false reject rate")
    lowest_far, _ = _draw_steps(axes, curves, miss=True)
    lowest_frr = min(1.0 / curve.num_genuine for curve in curves.values())
    axes.plot([1e-9, 1], [1e-9, 1], ":", color=INK, linewidth=1)
    axes.set_yscale("log")
    axes.set_xlim(10 ** np.floor(np.log10(lowest_far)), 1)
    axes.set_ylim(min(0.1, 10 ** np.floor(np.log10(lowest_frr))), 1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_percent))
    axes.legend(frameon=False, loc="lower left")
    return write(figure, path)


def plot_score_histogram(
    scores: Tensor,
    same: Tensor,
    path: str | os.PathLike[str],
    *,
    thresholds: Mapping[str, float] | None = None,
    title: str = "Scores of pairs",
    x_label: str = "cosine",
    bins: int = 80,
) -> Path:
    """Scores of genuine and impostor pairs as two histograms, each in per cent of its kind.

    Args:
        scores: Similarities, shape (P,).
        same: Whether a pair shows one identity, shape (P,), bool.
        path: PNG to write.
        thresholds: Name to score of vertical lines, for example the threshold at a false accept rate.
        title: Title of the picture.
        x_label: What the scores are.
        bins: Number of bins over the range of the scores.

    Returns:
        The path written.

    Raises:
        ValueError: When there is no finite score.
    """
    values = scores.detach().cpu().double().numpy()
    flags = same.detach().cpu().bool().numpy()
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("scores holds no finite value; there is nothing to draw")
    values, flags = values[finite], flags[finite]
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low, high if high > low else low + 1e-6, bins + 1).tolist()
    figure = new_figure()
    axes = figure.subplots()
    dress(axes, title, x_label, "share of its kind")
    for kind, colour, wanted in (("impostor", IMPOSTOR, False), ("genuine", GENUINE, True)):
        part = values[flags == wanted]
        if not len(part):
            continue
        label = f"{kind} pairs ({len(part):,})"
        weights = np.full(len(part), 1.0 / len(part))
        axes.hist(part, edges, weights=weights, color=colour, alpha=0.45, histtype="stepfilled", label=label)
        axes.hist(part, edges, weights=weights, color=colour, linewidth=1.2, histtype="step")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.22)  # room for the legend and the names of the lines
    lines = sorted((float(value), name) for name, value in (thresholds or {}).items() if np.isfinite(value))
    for i, (value, name) in enumerate(lines):
        axes.axvline(value, ymax=0.86, color=INK, linestyle="--", linewidth=1)
        left = i < len(lines) // 2 if len(lines) > 1 else value > 0.5 * (low + high)  # away from the other lines
        axes.annotate(
            f"{name}: {value:.3f}",
            (value, 0.80 - 0.07 * i),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if left else 4, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            fontsize=9,
            color=INK,
        )
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.legend(frameon=False, loc="upper center", ncols=2)
    return write(figure, path)


def _draw_steps(axes: Axes, curves: Mapping[str, RocCurve], *, miss: bool) -> tuple[float, float]:
    """Draw the curves; returns the lowest false accept rate and the lowest true accept rate on the picture."""
    if not curves:
        raise ValueError("curves is empty; give at least one")
    lowest_far, lowest_tar = 0.1, 1.0
    for colour, (name, curve) in zip(COLOURS * len(curves), curves.items(), strict=False):
        far, tar = curve.far.cpu().numpy(), curve.tar.cpu().numpy()
        # At each rate only the best point counts, and the curve begins at one false accept.
        last = np.append(far[1:] != far[:-1], True)
        far, tar = far[last], tar[last]
        start = 1.0 / curve.num_impostor
        keep = far >= start * (1 - 1e-9)
        rejected = 1.0 - tar[keep]
        if miss:
            rejected[rejected <= 0] = np.nan  # nothing is missed: below any logarithmic axis
        x, y = _thin(far[keep], rejected if miss else tar[keep])
        axes.step(x, y, where="post", color=colour, linewidth=2, label=name)
        lowest_far = min(lowest_far, start)
        lowest_tar = min(lowest_tar, float(tar[keep].min()))
    axes.set_xscale("log")
    return lowest_far, lowest_tar


def _thin(x: Array, y: Array) -> tuple[Array, Array]:
    """At most a few thousand points, evenly spread on the logarithmic axis."""
    if len(x) <= _MOST_POINTS:
        return x, y
    wanted = np.geomspace(x[0], x[-1], _MOST_POINTS)
    index = np.unique(np.clip(np.searchsorted(x, wanted), 0, len(x) - 1))
    return x[index], y[index]


def _percent(value: float, _position: object) -> str:
    return f"{value * 100:g} %"
