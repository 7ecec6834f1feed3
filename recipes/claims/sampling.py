"""What the sample rate costs and what it takes away, for the uniform sampler, retrieval and a mixture of the two.

Usage: python recipes/claims/sampling.py [--launcher COMMAND] [--draw-only]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runs import IMAGES, SETTING, Record, Setting, cell, interval, main, of, paired, table, train

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
        if sampler == "uniform" or rate == 0.05
    ),
    *(
        Setting(
            f"uniform 0.1, row-sparse AdamW, {word}",
            ("head.sample_rate=0.1", "optimizer.row_sparse=true", f"optimizer.missed_steps={word}"),
        )
        for word in ("skip", "decay")
    ),
]

# compared seed by seed: the same sampler at the same rate, and at one that costs more
PAIRS = [
    *((f"{ours} 0.05", "uniform 0.05") for ours in ("corrected", "retrieval", "mixed")),
    ("corrected 0.05", "uniform 0.1"),
    ("mixed 0.05", "uniform 0.1"),
    ("uniform 0.1", "full softmax"),
    ("positives only", "full softmax"),
    ("uniform 0.1, row-sparse AdamW, skip", "uniform 0.1"),
    ("uniform 0.1, row-sparse AdamW, decay", "uniform 0.1"),
]


def watch(module: Any, cosine: float) -> Record:
    from lightning_pfc.metrics.centers import nearest_centers

    return {"apcs": cosine, "mics": float(nearest_centers(module.head).cosine.mean())}


def run(setting: Setting, seed: int) -> Record:
    record, _, _ = train([*SETTING, *setting.overrides, f"seed={seed}"], watch=watch)
    return record


def report(records: Sequence[Record]) -> None:
    columns = [
        ("accuracy %", "test/accuracy", 100, 2),
        ("TAR@FAR 1e-3 %", "test/tar@far=1e-3", 100, 2),
        ("held-out design: accuracy %", "heldout/accuracy", 100, 2),
        ("held-out design: TAR@FAR 1e-3 %", "heldout/tar@far=1e-3", 100, 2),
        ("CPU s", "cpu_seconds", 1, 1),
        ("memory MB", "memory_mb", 1, 0),
    ]
    rows = [
        [s.name, *(cell(of(records, s.name, key), digits, factor) for _, key, factor, digits in columns)]
        for s in SETTINGS
        if of(records, s.name, "seed")
    ]
    print(table(["", *(column for column, *_ in columns)], rows))
    print()
    for ours, other in PAIRS:
        if not (of(records, ours, "seed") and of(records, other, "seed")):
            continue
        parts = []
        for what, key, factor in (
            ("accuracy", "test/accuracy", 100),
            ("TAR@FAR 1e-3", "test/tar@far=1e-3", 100),
            ("held-out TAR@FAR 1e-3", "heldout/tar@far=1e-3", 100),
            ("CPU s", "cpu_seconds", 1),
        ):
            mean, half = paired(records, ours, other, key)
            parts.append(f"{what} {factor * mean:+.2f} ± {factor * half:.2f}")
        print(f"* {ours} minus {other}, by seed: {', '.join(parts)}")
    draw(records)

    print()
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


def draw(records: Sequence[Record]) -> None:
    """Every run a dot, the seeds by color, and the means: what differs between seeds, and what between settings."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panes = plt.subplots(1, 3, figsize=(12, 4.5), layout="constrained", sharey=True)
    shown = [s.name for s in SETTINGS if of(records, s.name, "seed")]
    for pane, key, factor, label in (
        (panes[0], "test/tar@far=1e-3", 100, "TAR at FAR 1e-3, unseen characters, %"),
        (panes[1], "heldout/tar@far=1e-3", 100, "TAR at FAR 1e-3, unseen design, %"),
        (panes[2], "cpu_seconds", 1, "processor seconds of training"),
    ):
        for place, name in enumerate(shown):
            for record in records:
                if record["setting"] == name:
                    color = f"C{record['seed']}"
                    pane.plot(factor * record[key], -place, "o", color=color, alpha=0.6, markersize=5)
            pane.plot(factor * interval(of(records, name, key))[0], -place, "k|", markersize=14)
        pane.set_xlabel(label)
        pane.grid(alpha=0.3)
    panes[0].set_yticks([-i for i in range(len(shown))], shown)
    figure.savefig(IMAGES / "claims_sampling.png", dpi=110)


if __name__ == "__main__":
    main("sampling", SETTINGS, run, report)
