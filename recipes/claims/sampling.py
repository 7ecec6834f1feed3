"""What the sample rate costs and what it takes away, for the uniform sampler, retrieval and a mixture of the two.

Usage: python recipes/claims/sampling.py [--launcher COMMAND] [--draw-only]
"""

from __future__ import annotations

from collections.abc import Sequence

from runs import IMAGES, SETTING, Record, Setting, cell, interval, main, of, paired, table, train

RATES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.0)
SAMPLERS = ("uniform", "mixed", "retrieval")
LABELS = {"uniform": "uniform", "mixed": "mixed, half retrieved", "retrieval": "retrieval"}


def name_of(sampler: str, rate: float) -> str:
    return "full softmax" if rate == 1 else "positives only" if rate == 0 else f"{sampler} {rate:g}"


SETTINGS = [
    Setting(name_of(sampler, rate), (f"head.sample_rate={rate}", f"head/sampler={sampler}"), {"rate": rate})
    for rate in RATES
    for sampler in (SAMPLERS if 0 < rate <= 0.2 else SAMPLERS[:1])
]


def run(setting: Setting, seed: int) -> Record:
    record, _, _ = train([*SETTING, *setting.overrides, f"seed={seed}"])
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
    ]
    print(table(["", *(column for column, *_ in columns)], rows))
    print()
    for ours, other in (
        ("mixed 0.05", "uniform 0.05"),
        ("mixed 0.05", "uniform 0.1"),
        ("mixed 0.1", "uniform 0.1"),
        ("mixed 0.1", "uniform 0.2"),
        ("retrieval 0.1", "uniform 0.2"),
    ):
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


def draw(records: Sequence[Record]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for pane, key, label in (
        (panes[0], "test/tar@far=1e-3", "TAR at FAR 1e-3, unseen characters, %"),
        (panes[1], "heldout/tar@far=1e-3", "TAR at FAR 1e-3, unseen design, %"),
    ):
        for sampler, color in zip(SAMPLERS, ("tab:blue", "tab:green", "tab:orange"), strict=True):
            points = []
            for rate in RATES:
                if rate in (0.0, 1.0) and sampler != "uniform":
                    continue
                name = name_of(sampler, rate)
                values, times = of(records, name, key), of(records, name, "cpu_seconds")
                if values:
                    points.append((interval(times)[0], *interval([100 * v for v in values]), rate))
            if points:
                x, y, half, _ = zip(*points, strict=True)
                pane.errorbar(x, y, half, fmt="o-", capsize=3, color=color, label=LABELS[sampler])
                for at, value, _, rate in points:
                    pane.annotate(f"{rate:g}", (at, value), textcoords="offset points", xytext=(5, -11), fontsize=8)
        pane.set_xlabel("processor seconds of training")
        pane.set_ylabel(label)
        pane.grid(alpha=0.3)
    panes[0].legend(title="numbers: sample rate")
    figure.savefig(IMAGES / "claims_sampling.png", dpi=110)


if __name__ == "__main__":
    main("sampling", SETTINGS, run, report)
