"""What each trick is worth: one after another is added; with the average of weights it is ``experiment=bag_of_tricks``.

Usage: python recipes/claims/bag_of_tricks.py [--launcher COMMAND] [--draw-only]
"""

from __future__ import annotations

from collections.abc import Sequence

from runs import HELDOUT_TAR, IMAGES, SETTING, TAR, Record, Setting, cell, interval, main, of, paired, table, train

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
    plain, added, found = dict(PLAIN), [], []
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
        gain = ""
        if before is not None and of(records, setting.name, "seed") and of(records, before.name, "seed"):
            mean, half = paired(records, setting.name, before.name, TAR)
            gain = f"{100 * mean:+.2f} ± {100 * half:.2f}"
        rows.append([setting.name, *(cell(of(records, setting.name, key), n, by) for _, key, by, n in columns), gain])
    print(table(["", *(column for column, *_ in columns), "gain in TAR"], rows))
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, pane = plt.subplots(figsize=(8, 4), layout="constrained")
    for place, setting in enumerate(SETTINGS):
        for key, color, label in (
            (TAR, "tab:blue", "unseen characters"),
            (HELDOUT_TAR, "tab:orange", "unseen design"),
        ):
            values = of(records, setting.name, key)
            if values:
                mean, half = interval([100 * value for value in values])
                pane.errorbar(
                    mean, -place, xerr=half, fmt="o", capsize=3, color=color, label=label if place == 0 else None
                )
    pane.set_yticks([-i for i in range(len(SETTINGS))], [setting.name for setting in SETTINGS])
    pane.set_xlabel("TAR at FAR 1e-4, %")
    pane.grid(alpha=0.3)
    pane.legend()
    figure.savefig(IMAGES / "claims_bag_of_tricks.png", dpi=110)


if __name__ == "__main__":
    main("bag_of_tricks", SETTINGS, run, report)
