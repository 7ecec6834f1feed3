"""Does anything beat uniform Partial FC at equal time? What looked best in try-outs on another split, at five seeds.

Usage: python recipes/benchmarks/claims/equal_time.py [--jobs N] [--launcher COMMAND] [--draw-only]
"""

from __future__ import annotations

from collections.abc import Sequence

from figures import dots
from runs import HELDOUT_TAR, SETTING, TAR, Setting, main, train
from tables import Column, Record, compare

SEEDS = (0, 1, 2, 3, 4)
CORRECTED = "head.sampler.correction=true"
VPL = ("loss=vpl", "loss.start=200")
WAYS: dict[str, tuple[str, ...]] = {
    "CosFace, uniform": (),
    "CosFace, corrected": (CORRECTED,),
    "ArcFace, uniform": ("loss=arcface",),
    "VPL, uniform": VPL,
    "VPL, corrected": (*VPL, CORRECTED),
    # moving the sampled rows alone takes a fifth less time: an epoch more
    "CosFace, sampled rows, 5 epochs": ("optimizer.row_sparse=true", "trainer.max_epochs=5"),
}
SETTINGS = [Setting(name, ("head.sample_rate=0.1", *words)) for name, words in WAYS.items()]
PAIRS = [
    ("CosFace, corrected", "CosFace, uniform"),
    ("VPL, uniform", "ArcFace, uniform"),
    ("VPL, corrected", "VPL, uniform"),
    ("VPL, uniform", "CosFace, uniform"),
    ("CosFace, sampled rows, 5 epochs", "CosFace, uniform"),
]


def run(setting: Setting, seed: int) -> Record:
    return train([*SETTING, *setting.overrides, f"seed={seed}"])[0]


def report(records: Sequence[Record]) -> None:
    columns = [
        Column("accuracy %", "test/accuracy"),
        Column("TAR %", TAR),
        Column("held-out design: TAR %", HELDOUT_TAR),
        Column("CPU s", "cpu_seconds", factor=1, digits=1),
    ]
    names = [setting.name for setting in SETTINGS]
    compare(records, names, columns, PAIRS)
    labels = {
        TAR: "TAR at FAR 1e-4, unseen characters, %",
        HELDOUT_TAR: "TAR at FAR 1e-4, with an unseen design, %",
        "cpu_seconds": "processor seconds of training",
    }
    dots(records, names, labels, "equal_time")


if __name__ == "__main__":
    main("equal_time", SETTINGS, run, report, SEEDS)
