"""Data parallel, model parallel and Partial FC on two processes: throughput and memory over the number of classes.

Usage: python recipes/benchmarks/claims/parallel.py [--launcher COMMAND] [--draw-only]

The head alone: ArcFace with momentum on 512 numbers a class, 64 rows a process and step, one thread each, processes
that talk over gloo on one machine. Data parallel: each holds all centers, and their gradient is averaged. Memory is
that of one process beyond what it had before the head was made.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from figures import panes, save
from runs import Setting, main
from tables import Record, cell, interval, of, table

CLASSES = (3_000, 10_000, 30_000, 100_000)
WAYS = {"data parallel": ("data-parallel", 1.0), "model parallel": ("ours", 1.0), "Partial FC 0.1": ("ours", 0.1)}
SETTINGS = [Setting(f"{way}, {classes}", (), {"way": way, "classes": classes}) for way in WAYS for classes in CLASSES]
WARM_UP, STEPS = 2, 7


def run(setting: Setting, seed: int) -> Record:
    sys.path.insert(0, str(Path(__file__).parents[1] / "head"))
    from cases import Case
    from worker import Remote

    contestant, rate = WAYS[setting.extra["way"]]
    case = Case(setting.extra["classes"], rate, batch=128, dim=512, ranks=2, threads=1, seed=seed)
    remote = Remote(contestant, case, None)
    try:
        remote.ask("build")
        seconds = [max(rank["total"] for rank in remote.ask("step", number)) for number in range(WARM_UP + STEPS)]
        memory = remote.ask("memory")
    finally:
        remote.close()
    typical = statistics.median(seconds[WARM_UP:])
    peak = max(rank["peak"] - rank["baseline"] for rank in memory)
    return {"seconds": typical, "rows_per_second": case.batch / typical, "memory_mb": peak / (1 << 20)}


def report(records: Sequence[Record]) -> None:
    for title, key, digits in (("rows per second", "rows_per_second", 0), ("MB a process", "memory_mb", 0)):
        rows = [[way, *(cell(of(records, f"{way}, {c}", key), digits) for c in CLASSES)] for way in WAYS]
        print(table([title, *(f"{c:,} classes" for c in CLASSES)], rows), end="\n\n")
    figure, axes = panes(2, (10, 4))
    for pane, key, label in (
        (axes[0], "rows_per_second", "rows per second, 2 processes"),
        (axes[1], "memory_mb", "MB a process"),
    ):
        for way in WAYS:
            points = [(c, *interval(v)) for c in CLASSES if (v := of(records, f"{way}, {c}", key))]
            if points:
                x, y, half = zip(*points, strict=True)
                pane.errorbar(x, y, half, fmt="o-", capsize=3, label=way)
        pane.set_xscale("log")
        pane.set_yscale("log")
        pane.set_xlabel("classes")
        pane.set_ylabel(label)
    axes[0].legend()
    save(figure, "parallel")


if __name__ == "__main__":
    main("parallel", SETTINGS, run, report)
