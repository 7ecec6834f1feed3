"""What protocols find: numbers with intervals, and curves to draw."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_pfc.data.images import ImageTable
from lightning_pfc.evaluation.intervals import Interval
from lightning_pfc.evaluation.pairs import IndexedPairs
from lightning_pfc.metrics.functional import roc_curve
from lightning_pfc.metrics.verification import rate_name
from lightning_pfc.plots import plot_det, plot_hardest_pairs, plot_roc, plot_score_histogram


class Measurement(NamedTuple):
    """One number.

    Attributes:
        name: Without the name of the set, for example ``accuracy``.
        value: The number.
        interval: Where it would lie with other people or pairs, see ``evaluation.intervals``; None where there is none.
        note: What a reader must know beside it.
    """

    name: str
    value: float
    interval: Interval | None = None
    note: str = ""


@dataclass
class ScoredPairs:
    """Pairs with their scores, for pictures.

    Attributes:
        scores: Cosines, (P,) float64.
        pairs: The pairs.
        images: The pictures, if there are any.
        threshold: Of the pictures' marks.
    """

    scores: Tensor
    pairs: IndexedPairs
    images: ImageTable | None = None
    threshold: float | None = None


@dataclass
class ProtocolResult:
    """What one protocol found on one set.

    Attributes:
        name: Of the set, as the user calls it.
        description: One line: protocol, counts, unit of the intervals.
        measurements: The numbers.
        scored: Pairs for pictures, if the protocol keeps them.
    """

    name: str
    description: str
    measurements: list[Measurement]
    scored: ScoredPairs | None = field(default=None, repr=False)


def unresolved(rate: str, wanted: Iterable[float], trials: int, what: str) -> str:
    """What a description says of rates that so few trials cannot resolve and that are left out.

    Args:
        rate: What it is called, such as ``FAR``.
        wanted: The rates asked for.
        trials: How many there are.
        what: What they are.

    Returns:
        The words, to stand at the end; empty where all are resolved.
    """
    names = ", ".join(rate_name(each) for each in wanted if each * trials < 1)
    return f"; {trials:,} {what} cannot resolve {rate} {names}" if names else ""


def metrics_of(results: Iterable[ProtocolResult]) -> dict[str, float]:
    """All numbers under their full names, ``SET/NAME``."""
    return {f"{result.name}/{m.name}": m.value for result in results for m in result.measurements}


def as_json(results: Iterable[ProtocolResult]) -> dict[str, Any]:
    """Everything but the pictures, as plain data: ``metrics``, ``intervals``, ``sets``."""
    results = list(results)
    return {
        "metrics": metrics_of(results),
        "intervals": {
            f"{r.name}/{m.name}": list(m.interval) for r in results for m in r.measurements if m.interval is not None
        },
        "sets": {
            r.name: {"description": r.description, "notes": {m.name: m.note for m in r.measurements if m.note}}
            for r in results
        },
    }


def print_table(results: Iterable[ProtocolResult], level: float, console: Console | None = None) -> None:
    """One table of all sets."""
    table = Table(title_justify="left", show_edge=False, pad_edge=False)
    # In a log of 80 columns the notes are folded, and no name loses the rate at its end.
    table.add_column("set", overflow="fold")
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column(f"{level:.0%} interval", justify="right", no_wrap=True)
    table.add_column("note", style="dim", overflow="fold")
    console = console or Console()
    for result in results:
        for row, m in enumerate(result.measurements):
            interval = f"{m.interval.low:.4f} .. {m.interval.high:.4f}" if m.interval is not None else ""
            table.add_row(result.name if row == 0 else "", m.name, f"{m.value:.4f}", interval, m.note)
        table.add_section()
    console.print(table)
    for result in results:
        console.print(f"{result.name}: {result.description}", style="dim", highlight=False)


def draw(results: Iterable[ProtocolResult], folder: str | os.PathLike[str]) -> list[Path]:
    """ROC and DET of all sets together, score histogram and hardest pairs of each; the files written."""
    folder = Path(folder)
    scored = {r.name: r.scored for r in results if r.scored is not None}
    if not scored:
        return []
    curves = {name: roc_curve(s.scores, s.pairs.same) for name, s in scored.items()}
    written = [plot_roc(curves, folder / "roc.png"), plot_det(curves, folder / "det.png")]
    for name, s in scored.items():
        file = name.replace("/", "_")
        lines = {} if s.threshold is None else {"threshold": s.threshold}
        title = f"Scores of pairs: {name}"
        path = folder / f"scores_{file}.png"
        written.append(plot_score_histogram(s.scores, s.pairs.same, path, thresholds=lines, title=title))
        if s.images is not None:
            written.append(
                plot_hardest_pairs(
                    _Pictures(s.images),
                    s.pairs.first,
                    s.pairs.second,
                    s.scores,
                    s.pairs.same,
                    folder / f"hardest_pairs_{file}.png",
                    threshold=s.threshold,
                    title=f"Hardest pairs: {name}",
                )
            )
    return written


class _Pictures:
    def __init__(self, images: ImageTable) -> None:
        self.images = images

    def __call__(self, row: int) -> Tensor:
        import numpy as np

        return self.images.fetch(np.asarray([row], dtype=np.int64))[0]
