"""The curves of a benchmark: time and memory of a step over the number of classes, two panels for each setting."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

mpl.use("Agg")

_COLORS = {
    "products": "#999999",
    "products-fast": "#cccccc",
    "ours": "#d62728",
    "ours-in-backward": "#ff7f0e",
    "ours-lean": "#ffbb78",
    "ours-half": "#f7b6d2",
    "ours-half-lean": "#c49c94",
    "ours-adagrad": "#e377c2",
    "ours-bf16": "#9467bd",
    "ours-softmax": "#bcbd22",
    "linear": "#2ca02c",
    "linear-chunked": "#98df8a",
    "pml": "#17becf",
    "dense": "#1f77b4",
    "peer": "#8c564b",
    "data-parallel": "#7f7f7f",
}
_AXES = (("total", 1e3, "step (ms)"), ("above_baseline", 1e-6, "peak memory above the bare process (MB)"))


def draw(content: dict[str, Any], path: Path) -> None:
    """Write the curves of a results.json as a PNG."""
    panels: dict[tuple[float, int, int, int], list[dict[str, Any]]] = {}
    for measured in content["measured"]:
        case = measured["case"]
        panels.setdefault((case["rate"], case["batch"], case["ranks"], case["threads"]), []).append(measured)
    figure = Figure(figsize=(11, 3.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 2, squeeze=False)
    for row, (key, cases) in zip(axes, sorted(panels.items()), strict=True):
        cases.sort(key=lambda measured: measured["case"]["classes"])
        names = list(dict.fromkeys(name for measured in cases for name in measured["results"]))
        for axis, (field, factor, label) in zip(row, _AXES, strict=True):
            if len(cases) == 1:
                _bars(axis, cases[0], names, field, factor)
            else:
                _lines(axis, cases, names, field, factor)
            rate, batch, ranks, threads = key
            axis.set_title(f"rate {rate:g}, batch {batch}, {ranks} process(es) x {threads} thread(s)", fontsize=9)
            axis.set_ylabel(label, fontsize=9)
            axis.tick_params(labelsize=8)
            axis.grid(True, axis="y", which="major", alpha=0.3)
    figure.savefig(path, dpi=130)


def _lines(axis: Any, cases: list[dict[str, Any]], names: list[str], field: str, factor: float) -> None:
    for name in names:
        if name.startswith("products") and field != "total":
            continue
        points = [(m["case"]["classes"], factor * m["results"][name][field]) for m in cases if name in m["results"]]
        axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name, color=_COLORS[name])
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("classes", fontsize=9)
    axis.legend(fontsize=7)


def _bars(axis: Any, measured: dict[str, Any], names: list[str], field: str, factor: float) -> None:
    names = [name for name in names if field == "total" or not name.startswith("products")]
    values = [factor * measured["results"][name][field] for name in names]
    bars = axis.bar(names, values, color=[_COLORS[name] for name in names])
    axis.bar_label(bars, fmt="{:,.0f}", fontsize=8)
    axis.set_xlabel(f"{measured['case']['classes']:,} classes", fontsize=9)
    axis.tick_params(axis="x", labelrotation=30)


if __name__ == "__main__":
    import json

    folder = Path(sys.argv[1])
    draw(json.loads((folder / "results.json").read_text()), folder / "curves.png")
