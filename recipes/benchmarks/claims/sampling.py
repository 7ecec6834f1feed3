"""What the sample rate costs and what it takes away, for the uniform sampler, retrieval and a mixture of the two.

Usage: python recipes/benchmarks/claims/sampling.py [--launcher COMMAND] [--draw-only]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from figures import curves, dots
from runs import HELDOUT_TAR, SETTING, TAR, Setting, main, train
from tables import Column, Record, cell, compare, done, last_epoch, of, table

RATES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.0)
SAMPLERS: dict[str, tuple[str, ...]] = {
    "uniform": (),
    "corrected": ("head.sampler.correction=true",),
    "retrieval": ("head/sampler=retrieval",),
    "mixed": ("head/sampler=mixed", "head.sampler.query=target"),
}


def name_of(sampler: str, rate: float) -> str:
    return "full softmax" if rate == 1 else "positives only" if rate == 0 else f"{sampler} {rate:g}"


SETTINGS = [
    *(
        Setting(name_of(sampler, rate), (f"head.sample_rate={rate}", *words))
        for rate in RATES
        for sampler, words in SAMPLERS.items()
        if sampler == "uniform" or (0 < rate < 1 and sampler != "corrected") or rate == 0.05
    ),
    Setting("recent 0.1", ("head.sample_rate=0.1", "head/sampler=recent")),
    *(
        Setting(
            f"uniform 0.1, row-sparse AdamW, {word}",
            ("head.sample_rate=0.1", "optimizer.row_sparse=true", f"optimizer.missed_steps={word}"),
        )
        for word in ("skip", "decay")
    ),
]

# compared seed by seed
PAIRS = [
    *((f"{ours} {rate:g}", f"uniform {rate:g}") for rate in RATES[1:-1] for ours in ("retrieval", "mixed")),
    ("corrected 0.05", "uniform 0.05"),
    ("recent 0.1", "uniform 0.1"),
    *((f"uniform {rate:g}", "full softmax") for rate in RATES[1:-1]),
    ("positives only", "full softmax"),
    *((f"uniform 0.1, row-sparse AdamW, {word}", "uniform 0.1") for word in ("skip", "decay")),
]


def watch(module: Any, cosine: float) -> Record:
    from lightning_pfc.metrics.centers import nearest_centers

    return {"apcs": cosine, "mics": float(nearest_centers(module.head).cosine.mean())}


def run(setting: Setting, seed: int) -> Record:
    record, _, _ = train([*SETTING, *setting.overrides, f"seed={seed}"], watch=watch)
    return record


def report(records: Sequence[Record]) -> None:
    columns = [
        Column("accuracy %", "test/accuracy"),
        Column("TAR %", TAR),
        Column("held-out design: accuracy %", "heldout/accuracy", compared=False),
        Column("held-out design: TAR %", HELDOUT_TAR),
        Column("CPU s", "cpu_seconds", factor=1, digits=1),
        Column("memory MB", "memory_mb", factor=1, digits=0, compared=False),
    ]
    names = [setting.name for setting in SETTINGS]
    compare(records, names, columns, PAIRS)
    last = last_epoch(records)
    rows = [[name, *(cell(of(last, name, key), 3) for key in ("apcs", "mics"))] for name in done(last, names)]
    print(table(["after the last epoch", "APCS", "MICS, mean over the classes"], rows))
    labels = {
        TAR: "TAR at FAR 1e-4, unseen characters, %",
        HELDOUT_TAR: "TAR at FAR 1e-4, with an unseen design, %",
        "cpu_seconds": "processor seconds of training",
    }
    dots(records, names, labels, "sampling")
    rates = [name_of("uniform", rate) for rate in RATES]
    centers = {
        "apcs": "APCS: cosine of a sample to its own center",
        "mics": "MICS: cosine of a center to the nearest other",
    }
    curves(records, dict(zip(rates, rates, strict=True)), centers, "centers")


if __name__ == "__main__":
    main("sampling", SETTINGS, run, report)
