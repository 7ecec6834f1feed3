"""Wrong labels and split identities: full softmax, Partial FC, the inter-class filter and sub-centers.

Usage: python recipes/claims/noise.py [--launcher COMMAND] [--draw-only]

``flip``: 40 % of the training images get the label of a random other class. ``conflict``: the images of a third of the
classes are dealt out over two labels, as when a collection has one person under two names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from runs import IMAGES, SETTING, Record, Setting, cell, interval, main, of, table, train

CLASSES = 4000
METHODS = {
    "full softmax": ("head.sample_rate=1",),
    "Partial FC 0.1": ("head.sample_rate=0.1",),
    "full softmax, filter 0.4": ("head.sample_rate=1", "loss.interclass_filter=0.4"),
    "Partial FC 0.1, filter 0.4": ("head.sample_rate=0.1", "loss.interclass_filter=0.4"),
    "ArcFace, full": ("loss=arcface",),
    "ArcFace, 3 sub-centers": ("loss=subcenter", "loss.centers=3"),
}
NOISE = ("clean", "flip", "conflict")
SETTINGS = [
    Setting(f"{noise}: {method}", overrides, {"noise": noise})
    for noise in NOISE
    for method, overrides in METHODS.items()
    if noise != "clean" or method in ("full softmax", "Partial FC 0.1")
]


def spoil(data: Any, noise: str) -> None:
    """Change the labels of an opened data module; the same for every seed of training."""
    generator = np.random.default_rng(0)
    opened = data.data
    labels = np.asarray(opened.labels).copy()
    classes = opened.num_classes
    if noise == "flip":
        wrong = generator.random(len(labels)) < 0.4
        labels[wrong] = (labels[wrong] + generator.integers(1, classes, wrong.sum())) % classes
    elif noise == "conflict":
        split = np.flatnonzero(np.isin(labels, generator.permutation(classes)[: classes // 3]))
        second_name = {label: classes + i for i, label in enumerate(np.unique(labels[split]))}
        moved = split[generator.random(len(split)) < 0.5]
        labels[moved] = [second_name[label] for label in labels[moved]]
        classes += len(second_name)
    data._data = replace(opened, labels=labels, num_classes=classes)


def run(setting: Setting, seed: int) -> Record:
    record, _, _ = train(
        [*SETTING, f"data.source.train_classes={CLASSES}", *setting.overrides, f"seed={seed}"],
        lambda data: spoil(data, setting.extra["noise"]),
    )
    return record


def report(records: Sequence[Record]) -> None:
    columns = (("accuracy", "test/accuracy"), ("TAR@FAR 1e-3", "test/tar@far=1e-3"))
    header = ["%", *(f"{noise}: {column}" for noise in NOISE for column, _ in columns)]
    rows = [
        [method, *(cell(of(records, f"{noise}: {method}", key), 2, 100) for noise in NOISE for _, key in columns)]
        for method in METHODS
    ]
    print(table(header, rows))
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, pane = plt.subplots(figsize=(8, 4), layout="constrained")
    for place, method in enumerate(METHODS):
        for offset, (noise, color) in enumerate(zip(NOISE, ("tab:grey", "tab:red", "tab:purple"), strict=True)):
            values = of(records, f"{noise}: {method}", "test/tar@far=1e-3")
            if values:
                mean, half = interval([100 * value for value in values])
                pane.errorbar(
                    mean, -place + 0.2 * (1 - offset), xerr=half, fmt="o", capsize=3, color=color,
                    label=noise if place == 0 else None,
                )  # fmt: skip
    pane.set_yticks([-i for i in range(len(METHODS))], list(METHODS))
    pane.set_xlabel("TAR at FAR 1e-3, unseen characters, %")
    pane.grid(alpha=0.3)
    pane.legend()
    figure.savefig(IMAGES / "claims_noise.png", dpi=110)


if __name__ == "__main__":
    main("noise", SETTINGS, run, report)
