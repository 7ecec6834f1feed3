"""The questions that the other commands raise, asked again as a referee would: few, fixed before, with new draws.

Usage: python recipes/benchmarks/claims/confirm.py [--jobs N] [--launcher COMMAND] [--draw-only]

Each seed draws its own split of the characters and its own wrong labels, so that intervals hold for other characters
too. Each comparison changes one thing. Intervals hold for all comparisons together (Bonferroni), and a difference is
called nothing only where all of its interval lies within one point of TAR.
"""

from __future__ import annotations

from collections.abc import Sequence

from bag_of_tricks import SETTINGS as TRICKS
from figures import panes, save
from noise import spoil
from runs import SETTING, TAR, Setting, main, train
from tables import Column, Record, cell, done, of, paired, table, verdict

SEEDS = (0, 1, 2, 3, 4, 5, 6, 7)
MARGIN = 1.0  # point of TAR: less is no difference that anybody would choose by
TENTH = "head.sample_rate=0.1"
ALL_TRICKS = next(setting for setting in TRICKS if "average of weights" in setting.name)
SETTINGS = [
    Setting("CosFace, a tenth of the classes", (TENTH,)),
    Setting("CosFace, all classes", ("head.sample_rate=1",)),
    Setting("the same tenth, AdamW on sampled rows", (TENTH, "optimizer.row_sparse=true")),
    Setting("the same tenth, scale 64", (TENTH, "loss.scale=64")),
    Setting("the same tenth, experiment=bag_of_tricks", (TENTH, *ALL_TRICKS.overrides)),
    Setting("ArcFace, a tenth", (TENTH, "loss=arcface")),
    Setting("VPL, a tenth", (TENTH, "loss=vpl", "loss.start=200")),
    Setting("40 % flipped: ArcFace", ("head.sample_rate=1", "loss=arcface"), {"noise": "flip"}),
    Setting("40 % flipped: ArcFace, 3 sub-centers", ("head.sample_rate=1", "loss=subcenter"), {"noise": "flip"}),
]
PAIRS = [
    ("CosFace, a tenth of the classes", "CosFace, all classes"),
    ("the same tenth, AdamW on sampled rows", "CosFace, a tenth of the classes"),
    ("the same tenth, scale 64", "CosFace, a tenth of the classes"),
    ("the same tenth, experiment=bag_of_tricks", "CosFace, a tenth of the classes"),
    ("VPL, a tenth", "ArcFace, a tenth"),
    ("40 % flipped: ArcFace, 3 sub-centers", "40 % flipped: ArcFace"),
]


def run(setting: Setting, seed: int) -> Record:
    noise = setting.extra.get("noise", "clean")
    shared = [word for word in SETTING if "callbacks=ema" not in setting.overrides or "callbacks" not in word]
    words = [*shared, *setting.overrides, f"seed={seed}", f"+data.source.split_seed={100 + seed}"]
    return train(words, prepare=lambda data: spoil(data, noise, seed))[0]


def report(records: Sequence[Record]) -> None:
    columns = [
        Column("accuracy %", "test/accuracy"),
        Column("TAR %", TAR),
        Column("CPU s", "cpu_seconds", factor=1, digits=1),
    ]
    names = [setting.name for setting in SETTINGS]
    rows = [
        [
            name,
            str(len(of(records, name, "seed"))),
            *(cell(of(records, name, c.key), c.digits, c.factor) for c in columns),
        ]
        for name in done(records, names)
    ]
    print(table(["", "seeds", *(column.title for column in columns)], rows), end="\n\n")
    level = 1 - 0.05 / len(PAIRS)
    lines, shown = [], {}
    for one, other in PAIRS:
        if done(records, [one, other]) == [one, other]:
            mean, half = (100 * value for value in paired(records, one, other, TAR, level))
            cpu, width = paired(records, one, other, "cpu_seconds")
            name = f"{one} minus {other}"
            shown[name] = (mean, half)
            lines.append([name, f"{mean:+.2f} ± {half:.2f}", verdict(mean, half, MARGIN), f"{cpu:+.1f} ± {width:.1f}"])
    print(table(["by seed", "TAR, points, 95 % for all lines together", f"within {MARGIN:g} point?", "CPU s"], lines))
    _draw(shown)


def _draw(found: dict[str, tuple[float, float]]) -> None:
    figure, (pane,) = panes(1, (9, 1 + 0.5 * max(len(found), 1)))
    pane.axvspan(-MARGIN, MARGIN, alpha=0.15, label=f"no difference: {MARGIN:g} point")
    for place, (mean, half) in enumerate(found.values()):
        pane.errorbar(mean, -place, xerr=half, fmt="o", capsize=3, color="C0")
    pane.set_yticks([-i for i in range(len(found))], [name.replace(" minus ", "\nminus ") for name in found])
    pane.set_xlabel("TAR at FAR 1e-4, points")
    pane.legend()
    save(figure, "confirm")


if __name__ == "__main__":
    main("confirm", SETTINGS, run, report, SEEDS)
