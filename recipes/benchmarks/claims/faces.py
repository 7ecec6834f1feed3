"""Faces: sample rates and wrong labels on LFW, from scratch, tested on people who were never trained.

Usage: python recipes/benchmarks/claims/faces.py data.source.path=FOLDER [--jobs N] [--draw-only]

FOLDER has a folder of pictures for every person (``NAME/NAME_0001.jpg``, aligned). The data set is for research; it is
not part of this project. Seven tenths of the people are trained, most of them with a single picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from figures import dots
from noise import spoil
from runs import Setting, main, train
from tables import Column, Record, compare

FACES = (
    "data=folder",
    "choices=none",  # as it was measured
    "data.source.test_share=0.3",
    "data.source.image_size=48",
    "data.source.channels=1",
    "data.source.fit=stretch",
    "data.batch_size=64",
    "+backbone.options.widths=[16,32,64]",
    "+backbone.options.depths=[0,1,1]",
    "loss.scale=16",
    "trainer.max_epochs=10",
    "optimizer.row_sparse=false",
    "callbacks=none",
)
RATES = {"full softmax": "1", "Partial FC 0.1": "0.1", "positives only": "0"}
SETTINGS = [
    *(Setting(name, (f"head.sample_rate={rate}",), {"noise": "clean"}) for name, rate in RATES.items()),
    *(
        Setting(f"{name}, flip", (f"head.sample_rate={RATES[name]}",), {"noise": "flip"})
        for name in ("full softmax", "Partial FC 0.1")
    ),
]

# compared seed by seed
PAIRS = [
    *((name, "full softmax") for name in RATES if name != "full softmax"),
    ("Partial FC 0.1, flip", "full softmax, flip"),
]


def run(setting: Setting, seed: int) -> Record:
    def prepare(data: Any) -> None:
        spoil(data, setting.extra["noise"])

    return train([*FACES, *setting.overrides, f"seed={seed}"], prepare)[0]


def report(records: Sequence[Record]) -> None:
    columns = [
        Column("accuracy %", "test/accuracy"),
        Column("TAR@FAR 1e-2 %", "test/tar@far=1e-2"),
        Column("TAR@FAR 1e-3, all pairs, %", "test/all_pairs_tar@far=1e-3"),
    ]
    names = [setting.name for setting in SETTINGS]
    compare(records, names, columns, PAIRS)
    dots(records, names, {"test/accuracy": "10-fold accuracy, people never trained, %"}, "faces")


if __name__ == "__main__":
    main("faces", SETTINGS, run, report)
