"""Figures of what the claims found, written to ``docs/images``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tables import Record, done, interval, of

IMAGES = Path(__file__).parents[3] / "docs" / "images"


def panes(columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    """A figure and its panes side by side, (columns,)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=size, layout="constrained", squeeze=False, **options)
    for pane in axes[0]:
        pane.grid(alpha=0.3)
    return figure, axes[0]


def save(figure: Any, name: str) -> None:
    """``docs/images/claims_NAME.png``."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / f"claims_{name}.png", dpi=110)


def dots(records: Sequence[Record], names: Sequence[str], labels: Mapping[str, str], name: str) -> None:
    """Every run a dot, the seeds by color, and the means: what differs between seeds, and what between settings.

    ``labels`` is the label of each pane by the key of what it shows; shares are in percent.
    """
    shown = done(records, names)
    figure, axes = panes(len(labels), (4 * len(labels) + 2, 1 + 0.3 * len(shown)), sharey=True)
    for pane, (key, label) in zip(axes, labels.items(), strict=True):
        factor = 100 if label.endswith("%") else 1
        for place, setting in enumerate(shown):
            for record in records:
                if record["setting"] == setting:
                    pane.plot(factor * record[key], -place, "o", color=f"C{record['seed']}", alpha=0.6, markersize=5)
            pane.plot(factor * interval(of(records, setting, key))[0], -place, "k|", markersize=14)
        pane.set_xlabel(label)
    axes[0].set_yticks([-i for i in range(len(shown))], shown)
    save(figure, name)


def groups(
    records: Sequence[Record],
    lines: Sequence[str],
    series: Mapping[str, Mapping[str, tuple[str, str]]],
    label: str,
    name: str,
) -> None:
    """Means and intervals in percent: a line for each way, a color for each group.

    ``series`` says for every group which setting and which key each line shows.
    """
    figure, (pane,) = panes(1, (8, 4))
    for number, (group, sources) in enumerate(series.items()):
        found = [(place, of(records, *sources[line])) for place, line in enumerate(lines)]
        points = [(-p - 0.2 * (number - 1), *interval([100 * value for value in v])) for p, v in found if v]
        if points:
            y, mean, half = zip(*points, strict=True)
            pane.errorbar(mean, y, xerr=half, fmt="o", capsize=3, label=group)
    pane.set_yticks([-i for i in range(len(lines))], lines)
    pane.set_xlabel(label)
    if pane.get_legend_handles_labels()[0]:
        pane.legend()
    save(figure, name)


def curves(records: Sequence[Record], lines: Mapping[str, str], labels: Mapping[str, str], name: str) -> None:
    """Over the epochs: a pane for each key of ``labels``, a curve for each of ``lines`` (its label, its setting)."""
    figure, axes = panes(len(labels), (5 * len(labels), 4))
    for pane, (key, label) in zip(axes, labels.items(), strict=True):
        for line, setting in lines.items():
            runs = [r["epochs"] for r in records if r["setting"] == setting and key in (r.get("epochs") or [{}])[0]]
            if runs:
                points = [interval([run[i][key] for run in runs]) for i in range(min(map(len, runs)))]
                mean, half = zip(*points, strict=True)
                pane.errorbar(range(1, len(mean) + 1), mean, half, fmt="o-", capsize=3, label=line)
        pane.set_xlabel("epoch")
        pane.set_ylabel(label)
    if axes[-1].get_legend_handles_labels()[0]:
        axes[-1].legend(fontsize=8)
    save(figure, name)
