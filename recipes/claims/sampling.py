"""What the sample rate costs and what it takes away, for the uniform sampler, retrieval and a mixture of the two.

Usage: python recipes/claims/sampling.py [--launcher COMMAND] [--draw-only]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runs import (
    HELDOUT_TAR,
    IMAGES,
    SETTING,
    TAR,
    Column,
    Record,
    Setting,
    cell,
    compare,
    dots,
    interval,
    main,
    of,
    table,
    train,
)

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
    compare(records, SETTINGS, columns, PAIRS)
    panes = {
        TAR: "TAR at FAR 1e-4, unseen characters, %",
        HELDOUT_TAR: "TAR at FAR 1e-4, with an unseen design, %",
        "cpu_seconds": "processor seconds of training",
    }
    dots(records, SETTINGS, panes, "sampling")
    last = [{**record, **record["epochs"][-1]} for record in records if record.get("epochs")]
    rows = [
        [s.name, *(cell(of(last, s.name, key), 3) for key in ("apcs", "mics"))]
        for s in SETTINGS
        if of(last, s.name, "seed")
    ]
    print(table(["after the last epoch", "APCS", "MICS, mean over the classes"], rows))
    draw_centers(records)


def draw_centers(records: Sequence[Record]) -> None:
    """Cosine of samples to their own center and of centers to the nearest other one, over training."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for pane, key, label in (
        (panes[0], "apcs", "APCS: cosine of a sample to its own center"),
        (panes[1], "mics", "MICS: cosine of a center to the nearest other"),
    ):
        for rate in RATES:
            runs = [r["epochs"] for r in records if r["setting"] == name_of("uniform", rate) and r.get("epochs")]
            if runs:
                points = [interval([run[i][key] for run in runs]) for i in range(min(map(len, runs)))]
                mean, half = zip(*points, strict=True)
                pane.errorbar(range(1, len(mean) + 1), mean, half, fmt="o-", capsize=3, label=name_of("uniform", rate))
        pane.set_xlabel("epoch")
        pane.set_ylabel(label)
        pane.grid(alpha=0.3)
    panes[0].legend()
    figure.savefig(IMAGES / "claims_centers.png", dpi=110)


if __name__ == "__main__":
    main("sampling", SETTINGS, run, report)
