"""What each trick is worth: one after another is added; with the average of weights it is ``experiment=bag_of_tricks``.

Usage: python recipes/benchmarks/claims/bag_of_tricks.py [--launcher COMMAND] [--draw-only]
"""

from __future__ import annotations

from collections.abc import Sequence

from figures import groups
from runs import HELDOUT_TAR, SETTING, TAR, Setting, main, train
from tables import Record, cell, done, of, paired, table

PLAIN = {
    "loss": "loss=normface",
    "scale": "loss.scale=64",
    "head": "optimizer.head_lr_scale=1",
    "schedule": "scheduler=constant",
    "augment": "data.augment=none",
}
# a step of the ladder: what it replaces, and by what
LADDER: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("plain: NormFace, AdamW, constant rate", "", ()),
    ("+ margin (loss=cosface)", "loss", ("loss=cosface",)),
    ("+ scale 16 in place of 64", "scale", ("loss.scale=16",)),
    ("+ centers learn 10 x faster", "head", ("optimizer.head_lr_scale=10",)),
    ("+ warm-up and decay (scheduler=cosine)", "schedule", ("scheduler=cosine", "scheduler.warmup_epochs=0.3")),
    ("+ augmentation", "augment", ()),
    ("+ average of weights (callbacks=ema)", "", ("callbacks=ema", "~callbacks.checkpoint", "~callbacks.lr",
     "~callbacks.progress", "~callbacks.throughput", "callbacks.ema.decay=0.99")),
    ("+ label smoothing 0.1", "", ("loss.label_smoothing=0.1",)),
    ("+ mixup 0.2", "", ("data.mix={mixup: 0.2}",)),
)  # fmt: skip


def settings() -> list[Setting]:
    plain, found = dict(PLAIN), []
    added: list[str] = []
    for name, replaced, words in LADDER:
        plain.pop(replaced, None)
        added += words
        found.append(Setting(name, (*plain.values(), *added)))
    return found


SETTINGS = settings()


def run(setting: Setting, seed: int) -> Record:
    words = [word for word in SETTING if "callbacks" not in word or "callbacks=ema" not in setting.overrides]
    record, _, _ = train([*words, "head.sample_rate=0.1", *setting.overrides, f"seed={seed}"])
    return record


def report(records: Sequence[Record]) -> None:
    columns = [
        ("accuracy %", "test/accuracy", 100, 2),
        ("TAR %", TAR, 100, 2),
        ("held-out design: TAR %", HELDOUT_TAR, 100, 2),
        ("CPU s", "cpu_seconds", 1, 1),
    ]
    rows = []
    for before, setting in zip([None, *SETTINGS], SETTINGS, strict=False):
        if not done(records, [setting.name]):
            continue
        gain = ""
        if before is not None and len(done(records, [setting.name, before.name])) == 2:
            mean, half = paired(records, setting.name, before.name, TAR)
            gain = f"{100 * mean:+.2f} ± {100 * half:.2f}"
        rows.append([setting.name, *(cell(of(records, setting.name, key), n, by) for _, key, by, n in columns), gain])
    print(table(["", *(column for column, *_ in columns), "gain in TAR"], rows))
    names = done(records, [setting.name for setting in SETTINGS])
    series = {
        "unseen characters": {name: (name, TAR) for name in names},
        "unseen design": {name: (name, HELDOUT_TAR) for name in names},
    }
    groups(records, names, series, "TAR at FAR 1e-4, %", "bag_of_tricks")


if __name__ == "__main__":
    main("bag_of_tricks", SETTINGS, run, report)
