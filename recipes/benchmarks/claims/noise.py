"""Wrong labels and split identities: full softmax, Partial FC, the inter-class filter and sub-centers.

Usage: python recipes/benchmarks/claims/noise.py [--launcher COMMAND] [--draw-only]

``flip``: 40 % of the training images get the label of a random other class. ``conflict``: the images of a third of the
classes are dealt out over two labels, as when a collection has one person under two names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from figures import curves, groups
from numpy.typing import NDArray
from runs import SETTING, TAR, Setting, embed, main, some, train
from tables import Column, Record, cell, differences, done, last_epoch, of, table

METHODS = {
    "full softmax": ("head.sample_rate=1",),
    "Partial FC 0.1": ("head.sample_rate=0.1",),
    "Partial FC 0.1, filter 0.4": ("head.sample_rate=0.1", "loss.interclass_filter=0.4"),
    "ArcFace, 3 sub-centers": ("loss=subcenter", "loss.centers=3"),
}
NOISE = ("clean", "flip", "conflict")
SETTINGS = [
    Setting(f"{noise}: {method}", overrides, {"noise": noise})
    for noise in NOISE
    for method, overrides in METHODS.items()
    if noise != "clean" or method in ("full softmax", "Partial FC 0.1")
]


def spoil(data: Any, noise: str, seed: int = 0) -> NDArray[np.int64]:
    """Change the labels of an opened data module, by the seed alone; and each class's other name, or -1."""
    generator = np.random.default_rng(seed)
    opened = data.data
    labels = np.asarray(opened.labels).copy()
    classes = opened.num_classes
    other = np.full(2 * classes, -1)
    if noise == "flip":
        wrong = generator.random(len(labels)) < 0.4
        labels[wrong] = (labels[wrong] + generator.integers(1, classes, wrong.sum())) % classes
    elif noise == "conflict":
        split = np.flatnonzero(np.isin(labels, generator.permutation(classes)[: classes // 3]))
        names = np.unique(labels[split])
        other[names], other[classes : classes + len(names)] = classes + np.arange(len(names)), names
        moved = split[generator.random(len(split)) < 0.5]
        labels[moved] = other[labels[moved]]
        classes += len(names)
    data._data = replace(opened, labels=labels, num_classes=classes)
    return other[:classes]


def run(setting: Setting, seed: int) -> Record:
    found: dict[str, Any] = {}

    def prepare(data: Any) -> None:
        found["other"] = spoil(data, setting.extra["noise"])
        found["data"] = data.data

    def watch(module: Any, cosine: float) -> Record:
        if setting.extra["noise"] != "conflict":
            return {"apcs": cosine}
        return {"apcs": cosine, **largest_other_cosines(module, found["data"], found["other"])}

    record, _, _ = train([*SETTING, *setting.overrides, f"seed={seed}"], prepare, watch)
    return record


def largest_other_cosines(module: Any, data: Any, other: NDArray[np.int64]) -> Record:
    """AMNCS of the images of split identities: to the identity's other name (noise), and to true others (hard)."""
    import torch
    import torch.nn.functional as F

    labels = np.asarray(data.labels)
    rows = np.flatnonzero(other[labels] >= 0)
    x = F.normalize(embed(module, some(data.train, rows)))
    weight = module.head.weight.detach()
    centers = F.normalize(weight.view(len(weight), -1, module.embedding_dim), dim=2)
    noise, hard = [], []
    for part, chosen in zip(x.split(500), np.split(rows, range(500, len(rows), 500)), strict=True):
        cosine = torch.einsum("bd,ckd->bck", part, centers).amax(2)
        second = torch.as_tensor(other[labels[chosen]])[:, None]
        noise.append(cosine.gather(1, second))
        cosine.scatter_(1, second, -1.0).scatter_(1, torch.as_tensor(labels[chosen])[:, None], -1.0)
        hard.append(cosine.amax(1))
    return {"amncs/noise": float(torch.cat(noise).mean()), "amncs/hard": float(torch.cat(hard).mean())}


def report(records: Sequence[Record]) -> None:
    columns = [Column("accuracy", "test/accuracy"), Column("TAR", TAR)]
    header = ["%", *(f"{noise}: {column.title}" for noise in NOISE for column in columns)]
    rows = [
        [
            method,
            *(cell(of(records, f"{noise}: {method}", c.key), c.digits, c.factor) for noise in NOISE for c in columns),
        ]
        for method in METHODS
        if done(records, [f"{noise}: {method}" for noise in NOISE])
    ]
    print(table(header, rows), end="\n\n")
    pairs = [(f"{noise}: {method}", f"{noise}: full softmax") for noise in NOISE for method in list(METHODS)[1:]]
    differences(records, columns, pairs)
    last = last_epoch(records)
    names = ["apcs", "amncs/noise", "amncs/hard"]
    shown = [method for method in METHODS if of(last, f"conflict: {method}", "amncs/hard")]
    rows = [[method, *(cell(of(last, f"conflict: {method}", name), 3) for name in names)] for method in shown]
    print(table(["conflict, last epoch", "APCS", "AMNCS noise", "AMNCS hard"], rows))
    series = {noise: {method: (f"{noise}: {method}", TAR) for method in METHODS} for noise in NOISE}
    groups(records, list(METHODS), series, "TAR at FAR 1e-4, unseen characters, %", "noise")
    nearest = {
        "amncs/noise": "AMNCS noise: cosine to the identity's other name",
        "amncs/hard": "AMNCS hard: cosine to the nearest true other",
    }
    curves(records, {method: f"conflict: {method}" for method in METHODS}, nearest, "conflict")


if __name__ == "__main__":
    main("noise", SETTINGS, run, report)
