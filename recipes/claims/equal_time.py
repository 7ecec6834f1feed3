"""Does anything beat uniform Partial FC at equal time? What looked best in try-outs on another split, at five seeds.

Usage: python recipes/claims/equal_time.py [--jobs N] [--launcher COMMAND] [--draw-only]
"""

from __future__ import annotations

from collections.abc import Sequence

from runs import HELDOUT_TAR, SETTING, TAR, Column, Record, Setting, compare, dots, main, train

SEEDS = (0, 1, 2, 3, 4)
CORRECTED = "head.sampler.correction=true"
VPL = ("loss=vpl", "loss.start=200")
WAYS: dict[str, tuple[str, ...]] = {
    "CosFace, uniform": (),
    "CosFace, corrected": (CORRECTED,),
    "ArcFace, uniform": ("loss=arcface",),
    "VPL, uniform": VPL,
    "VPL, corrected": (*VPL, CORRECTED),
}
SETTINGS = [Setting(name, ("head.sample_rate=0.1", *words)) for name, words in WAYS.items()]
PAIRS = [
    ("CosFace, corrected", "CosFace, uniform"),
    ("VPL, uniform", "ArcFace, uniform"),
    ("VPL, corrected", "VPL, uniform"),
    ("VPL, corrected", "CosFace, uniform"),
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
    compare(records, SETTINGS, columns, PAIRS)
    panes = {
        TAR: "TAR at FAR 1e-4, unseen characters, %",
        HELDOUT_TAR: "TAR at FAR 1e-4, with an unseen design, %",
        "cpu_seconds": "processor seconds of training",
    }
    dots(records, SETTINGS, panes, "equal_time")


if __name__ == "__main__":
    main("equal_time", SETTINGS, run, report, SEEDS)
