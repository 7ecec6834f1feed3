"""What the claims share: one run of one setting in a process of its own, results that survive interruption, a table.

Every claim is a command: it does the runs that its file of results lacks, one after another, then writes table and
figure. ``--launcher "nice -n 19"`` goes before each run; ``--draw-only`` runs nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).parents[2] / "docs" / "images"
SEEDS = (0, 1, 2)
# Chosen by try-outs on another split of the characters (docs/claims.md says how): what one thread trains in half a
# minute with all classes in every step. Centers that were not sampled follow the optimizer too (row_sparse=false);
# sampling.py has AdamW on sampled rows alone in lines of its own.
SETTING = (
    "data.source.train_classes=4000",
    "data.batch_size=64",
    "+data.source.impostors=50000",
    "+backbone.options.widths=[16,32,64]",
    "+backbone.options.depths=[0,1,1]",
    "trainer.max_epochs=5",
    "optimizer.row_sparse=false",
    "callbacks=none",
)
# Student's t, two sided 95 %, by degrees of freedom
_STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}

Record = dict[str, Any]


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
    return record, module, data


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
    parser.add_argument("--at-once", type=int, default=5, metavar="N", help="runs in one process, one after another")
    parser.add_argument("--only", nargs="+", metavar="SETTING SEED", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    results: Path = arguments.results
    by_name = {setting.name: setting for setting in settings}
    if arguments.only:
        for name, seed in zip(arguments.only[::2], map(int, arguments.only[1::2]), strict=True):
            record = {"claim": claim, "setting": name, "seed": seed, **run(by_name[name], seed)}
            with results.open("a") as file:
                file.write(json.dumps(record) + "\n")
        return
    results.parent.mkdir(parents=True, exist_ok=True)
    if not arguments.draw_only:
        done = {(record["setting"], record["seed"]) for record in load(results)}
        missing = [(s.name, seed) for seed in seeds for s in settings if (s.name, seed) not in done]
        for first in range(0, len(missing), arguments.at_once):
            part = missing[first : first + arguments.at_once]
            words = [str(word) for pair in part for word in pair]
            command = [sys.executable, sys.argv[0], "--results", str(results), "--only", *words]
            status = subprocess.run([*shlex.split(arguments.launcher), *command], check=False).returncode
            print(f"{part}: {'done' if status == 0 else 'FAILED'}", flush=True)
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
