"""How far as it comes is ahead of each plain script: a dot for each set and seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

mpl.use("Agg")

_SCRIPTS = {"plain_cross_entropy": ("cross entropy", "#1f77b4"), "plain_arcface": ("ArcFace", "#d62728")}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Write a PNG.

    Args:
        rows: of the log, of one version of the rules.
        path: of the picture.
    """
    found = {(r["set"], r["seed"], r["contestant"]): r["rank1"] for r in rows if not r["words"]}
    sets = sorted({name for name, _, _ in found}, reverse=True)
    figure = Figure(figsize=(7, 0.6 + 0.42 * len(sets)), layout="constrained")
    axis = figure.subplots()
    for script, (label, color) in _SCRIPTS.items():
        beside = [(s, n) for s, n, c in found if c == script and (s, n, "as_it_comes") in found]
        ahead = [found[s, n, "as_it_comes"] - found[s, n, script] for s, n in beside]
        lower = 0.14 if script == "plain_arcface" else -0.14  # beside, not upon, those of the other script
        heights = [sets.index(name) - lower for name, _ in beside]
        axis.scatter(ahead, heights, s=28, color=color, alpha=0.8, label=label)
    axis.axvline(0, color="#333333", linewidth=1)
    axis.set_yticks(range(len(sets)), sets)
    axis.set_xlabel("as it comes ahead of the script, points of one-shot rank-1", fontsize=9)
    axis.tick_params(labelsize=9)
    axis.grid(True, axis="x", alpha=0.3)
    axis.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)
