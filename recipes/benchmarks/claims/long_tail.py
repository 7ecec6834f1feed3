"""A long tail: images of a class drawn after Zipf's law, frequent and rare classes reported apart.

Usage: python recipes/benchmarks/claims/long_tail.py [--launcher COMMAND] [--draw-only]

One image of every class is held out. Of the others, class number k by a random order is drawn ``max(1, n / k)`` times
an epoch, n such that an epoch is as long as that of the balanced set: a class in the tail has one picture, one in the
head hundreds of augmented ones. Which of all classes is nearest to a held-out image? Head: the first tenth of the
classes; tail: the last half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from figures import groups
from numpy.typing import NDArray
from runs import CLASSES, SETTING, TAR, Setting, embed, main, some, train
from tables import Column, Record, compare

LARGEST = 200  # images of a class in an epoch
SETTINGS = [
    Setting("full softmax", ("head.sample_rate=1",)),
    Setting("uniform 0.1", ("head.sample_rate=0.1",)),
    Setting("frequency 0.1, alpha 1", ("head.sample_rate=0.1", "head/sampler=frequency", "head.sampler.alpha=1")),
]
GROUPS = ("head", "middle", "tail")


def zipf(labels: NDArray[np.int64], classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train on, with repeats; a held-out row of each class; each class's place in the order of frequency."""
    generator = np.random.default_rng(0)
    place = generator.permutation(classes)
    by_class = np.argsort(labels, kind="stable")
    start = np.searchsorted(labels[by_class], np.arange(classes + 1))
    wanted = len(labels) - classes
    low, high = 1.0, float(wanted)
    while high - low > 0.5:
        middle = (low + high) / 2
        total = np.clip(middle / (place + 1), 1, LARGEST).astype(int).sum()
        low, high = (middle, high) if total < wanted else (low, middle)
    counts = np.clip(low / (place + 1), 1, LARGEST).astype(int)
    rows, held = [], np.empty(classes, dtype=np.int64)
    for label in range(classes):
        own = generator.permutation(by_class[start[label] : start[label + 1]])
        held[label] = own[0]
        rows.append(np.resize(own[1:], counts[label]))
    return np.concatenate(rows), held, place


def run(setting: Setting, seed: int) -> Record:
    import torch

    found: dict[str, Any] = {}

    def prepare(data: Any) -> None:
        opened = data.data
        rows, held, place = zipf(np.asarray(opened.labels), opened.num_classes)
        found.update(images=opened.train, held=held, place=place)
        data._data = replace(opened, train=some(opened.train, rows), labels=np.asarray(opened.labels)[rows])

    record, module, _ = train([*SETTING, *setting.overrides, f"seed={seed}"], prepare)
    embeddings = embed(module, some(found["images"], found["held"]))
    module.eval()
    hits = []
    with torch.no_grad():
        for part, labels in zip(embeddings.split(500), torch.arange(CLASSES).split(500), strict=True):
            hits.append((module.head.target_ranks(part, labels).rank == 0).float())
    top1 = torch.cat(hits).numpy()
    share = found["place"] / CLASSES
    for group, chosen in zip(GROUPS, (share < 0.1, (share >= 0.1) & (share < 0.5), share >= 0.5), strict=True):
        record[f"top1/{group}"] = float(top1[chosen].mean())
    record["top1/all"] = float(top1.mean())
    return record


def report(records: Sequence[Record]) -> None:
    columns = [
        *(Column(f"top-1 {group} %", f"top1/{group}") for group in (*GROUPS, "all")),
        Column("unseen: accuracy %", "test/accuracy", compared=False),
        Column("unseen: TAR %", TAR),
        Column("CPU s", "cpu_seconds", factor=1, digits=1),
    ]
    names = [setting.name for setting in SETTINGS]
    pairs = [(names[1], names[0]), *((name, names[1]) for name in names[2:])]
    compare(records, names, columns, pairs)
    series = {group: {name: (name, f"top1/{group}") for name in names} for group in GROUPS}
    label = f"held-out images of trained characters, nearest of {CLASSES:,} centers right, %"
    groups(records, names, series, label, "long_tail")


if __name__ == "__main__":
    main("long_tail", SETTINGS, run, report)
