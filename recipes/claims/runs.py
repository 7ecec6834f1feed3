"""What the claims share: one run of one setting in a process of its own, results that survive interruption, a table.

Every claim is a command: it does the runs that its file of results lacks, ``--jobs`` at once, then writes table and
figure. ``--launcher "nice -n 19"`` goes before each run; ``--draw-only`` runs nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import os
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

IMAGES = Path(__file__).parents[2] / "docs" / "images"
SEEDS = (0, 1, 2)
FARS = (1e-3, 1e-4, 1e-5)  # of all pairs
TAR, HELDOUT_TAR = "test/all_pairs_tar@far=1e-4", "heldout/all_pairs_tar@far=1e-4"  # what the claims compare
# Chosen by try-outs on another split of the characters (docs/claims.md says how): what one thread trains in a minute or
# two. Centers that were not sampled follow the optimizer too (row_sparse=false); sampling.py has AdamW on sampled rows
# alone in lines of its own. The pairs of the protocol are few, since all pairs are measured as well.
CLASSES = 20_480
SETTING = (
    f"data.source.train_classes={CLASSES}",
    "data.batch_size=256",
    "+data.source.impostors=20000",
    "+backbone.options.widths=[16,32,64]",
    "+backbone.options.depths=[0,1,1]",
    "loss.scale=16",
    "trainer.max_epochs=4",
    "optimizer.row_sparse=false",
    "callbacks=none",
)
# Student's t, two sided 95 %, by degrees of freedom
_STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}

Record = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of a table: its title, where a record has it, and how it is written."""

    title: str
    key: str
    factor: float = 100.0
    digits: int = 2
    compared: bool = True  # by seed, too


@dataclass(frozen=True)
class Setting:
    """One line of a table: a name and what it changes on the command line of ``pfc-train``."""

    name: str
    overrides: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


def train(
    overrides: Sequence[str],
    prepare: Callable[[Any], None] | None = None,
    watch: Callable[[Any, float], Record] | None = None,
) -> tuple[Record, Any, Any]:
    """Train and test on one thread as ``pfc-train OVERRIDES`` would; the record, the module and the data.

    ``watch(module, mean cosine to the own center)`` is called after every epoch, and what it says is in ``epochs``.

    ``cpu_seconds`` is the processor time of training alone, all threads of the process together: what it cost, however
    busy the machine was. ``memory_mb`` is by how much training raised the peak of resident memory.
    """
    import lightning as L
    import torch
    from hydra.utils import instantiate

    from lightning_pfc import PartialFCStrategy
    from lightning_pfc.config import compose

    torch.set_num_threads(1)
    config = compose(overrides)
    L.seed_everything(config.seed, workers=True, verbose=False)
    data = instantiate(config.data, _convert_="all")
    data.prepare_data()
    data.setup("fit")
    if prepare is not None:
        prepare(data)
    module = instantiate(config.model, num_classes=data.num_classes, input_size=list(data.input_size), _convert_="all")
    epochs: list[Record] = []
    watched = [0.0, 0.0]

    class Watch(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if watch is not None:
                cpu, wall = time.process_time(), time.perf_counter()
                epochs.append(watch(pl_module, float(trainer.callback_metrics["train/target_cosine"])))
                watched[0] += time.process_time() - cpu
                watched[1] += time.perf_counter() - wall

    trainer = L.Trainer(
        strategy=PartialFCStrategy(),
        accelerator="cpu",
        devices=1,
        max_epochs=config.trainer.max_epochs,
        gradient_clip_val=config.trainer.gradient_clip_val,
        callbacks=[Watch(), *(instantiate(c, _convert_="all") for c in (config.callbacks or {}).values() if c)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    _forget_peak()
    before = _peak_mb()
    start, wall = time.process_time(), time.perf_counter()
    trainer.fit(module, datamodule=data)
    cpu, wall = time.process_time() - start, time.perf_counter() - wall
    record: Record = {
        "cpu_seconds": cpu - watched[0],
        "wall_seconds": wall - watched[1],
        "memory_mb": _peak_mb() - before,
        "steps": trainer.global_step,
        "train_loss": float(trainer.callback_metrics["train/loss"]),
    }
    if watch is not None:
        record["epochs"] = epochs
    for values in trainer.test(module, datamodule=data, verbose=False):
        record |= {key.split("/dataloader")[0]: float(value) for key, value in values.items()}
    return record | all_pairs(module, data), module, data


def some(images: Any, rows: NDArray[np.int64]) -> Any:
    """These rows, repeats included, of a table of drawn pictures."""
    return type(images)(images.array, images.rows[rows])


def embed(module: Any, images: Any) -> Tensor:
    """Embeddings (n, D) float32 of a table of pictures."""
    from lightning_pfc.protocols.embedders import TorchEmbedder, embed_images

    return embed_images(TorchEmbedder(module, images.image_shape), images, flip="none", batch_size=256)


def all_pairs(module: Any, data: Any) -> Record:
    """True accept rates over all pairs of a test set: ``NAME/all_pairs_tar@far=1e-4``."""
    from lightning_pfc.metrics.verification import rate_name
    from lightning_pfc.protocols.all_pairs import all_pairs_tar

    record: Record = {}
    for name, shown in data.verification_sets("test").items():
        found = all_pairs_tar(embed(module, shown.images), shown.identity, FARS)
        record |= {f"{name}/all_pairs_tar@far={rate_name(p.wanted_far)}": p.tar for p in found.points}
    return record


def main(
    claim: str,
    settings: Sequence[Setting],
    run: Callable[[Setting, int], Record],
    report: Callable[[list[Record]], None],
    seeds: Sequence[int] = SEEDS,
) -> None:
    """The command of a claim."""
    parser = argparse.ArgumentParser(description=f"Claim: {claim}. Runs what is missing, then writes table and figure.")
    parser.add_argument("--results", type=Path, default=Path("runs/claims") / f"{claim}.jsonl")
    parser.add_argument("--launcher", default="", help="a command to put before each run")
    parser.add_argument("--draw-only", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once, each on one thread")
    parser.add_argument("--only", nargs=2, metavar=("SETTING", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="more words of pfc-train, for every run: data.source.path=...")
    arguments = parser.parse_args()
    results: Path = arguments.results
    by_name = {setting.name: setting for setting in settings}
    if arguments.only:
        name, seed = arguments.only[0], int(arguments.only[1])
        setting = by_name[name]
        setting = replace(setting, overrides=(*setting.overrides, *arguments.overrides))
        record = {"claim": claim, "setting": name, "seed": seed, **run(setting, seed)}
        with results.open("a") as file:
            file.write(json.dumps(record) + "\n")
        return
    results.parent.mkdir(parents=True, exist_ok=True)
    if not arguments.draw_only:
        done = {(record["setting"], record["seed"]) for record in load(results)}
        missing = [(s.name, seed) for seed in seeds for s in settings if (s.name, seed) not in done]
        start = [*shlex.split(arguments.launcher), sys.executable, sys.argv[0], "--results", str(results), "--only"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}

        def do(pair: tuple[str, int]) -> None:
            log = results.with_suffix(".log")
            with log.open("a") as file:
                command = [*start, pair[0], str(pair[1]), "--", *arguments.overrides]
                status = subprocess.run(command, check=False, env=environment, stdout=file, stderr=file).returncode
            if status:
                tqdm.write(f"{pair[0]}, seed {pair[1]}: FAILED, see the end of {log}")

        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(tqdm(pool.map(do, missing), total=len(missing), unit="run", desc=claim))
    order = list(by_name)
    records = [record for record in load(results) if record["setting"] in by_name]
    IMAGES.mkdir(parents=True, exist_ok=True)
    report(sorted(records, key=lambda record: (order.index(record["setting"]), record["seed"])))


def load(results: Path) -> list[Record]:
    """What was measured so far."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text().splitlines() if line.strip()]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % confidence interval over the seeds (Student's t)."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, _STUDENT[len(values) - 1] * statistics.stdev(values) / len(values) ** 0.5


def paired(records: Sequence[Record], one: str, other: str, key: str) -> tuple[float, float]:
    """Mean of ``one - other`` over the seeds that both have, and half the width of its 95 % interval."""
    values = [{r["seed"]: r[key] for r in records if r["setting"] == name} for name in (one, other)]
    return interval([values[0][seed] - values[1][seed] for seed in sorted(values[0].keys() & values[1].keys())])


def cell(values: Sequence[float], digits: int, factor: float = 1.0) -> str:
    """``mean ± half width`` for a table."""
    if not values:
        return ""
    mean, half = interval([factor * value for value in values])
    return f"{mean:.{digits}f} ± {half:.{digits}f}" if math.isfinite(half) else f"{mean:.{digits}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def compare(
    records: Sequence[Record], settings: Sequence[Setting], columns: Sequence[Column], pairs: Sequence[tuple[str, str]]
) -> None:
    """Print a table of the settings, and for each of ``pairs`` the first minus the second, seed by seed."""
    rows = [
        [s.name, *(cell(of(records, s.name, c.key), c.digits, c.factor) for c in columns)]
        for s in settings
        if of(records, s.name, "seed")
    ]
    print(table(["", *(c.title for c in columns)], rows), end="\n\n")
    for one, other in pairs:
        if of(records, one, "seed") and of(records, other, "seed"):
            parts = []
            for c in columns:
                if c.compared:
                    mean, half = paired(records, one, other, c.key)
                    parts.append(f"{c.title} {c.factor * mean:+.2f} ± {c.factor * half:.2f}")
            print(f"* {one} minus {other}, by seed: {', '.join(parts)}")
    print()


def dots(records: Sequence[Record], settings: Sequence[Setting], panes: Mapping[str, str], name: str) -> None:
    """Every run a dot, the seeds by color, and the means: what differs between seeds, and what between settings.

    ``panes`` is the label of each pane by the key of what it shows; shares are in percent.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [s.name for s in settings if of(records, s.name, "seed")]
    size = (4 * len(panes) + 2, 1 + 0.3 * len(shown))
    figure, axes = plt.subplots(1, len(panes), figsize=size, layout="constrained", sharey=True, squeeze=False)
    for pane, (key, label) in zip(axes[0], panes.items(), strict=True):
        factor = 100 if label.endswith("%") else 1
        for place, setting in enumerate(shown):
            for record in records:
                if record["setting"] == setting:
                    pane.plot(factor * record[key], -place, "o", color=f"C{record['seed']}", alpha=0.6, markersize=5)
            pane.plot(factor * interval(of(records, setting, key))[0], -place, "k|", markersize=14)
        pane.set_xlabel(label)
        pane.grid(alpha=0.3)
    axes[0, 0].set_yticks([-i for i in range(len(shown))], shown)
    figure.savefig(IMAGES / f"claims_{name}.png", dpi=110)


def of(records: Sequence[Record], setting: str, key: str) -> list[float]:
    """The values of a setting over its seeds."""
    return [r[key] for r in records if r["setting"] == setting and key in r]


def _forget_peak() -> None:
    """Let the peak of resident memory begin anew (Linux; elsewhere it is that of the process)."""
    with contextlib.suppress(OSError):
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
