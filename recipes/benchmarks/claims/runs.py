"""What the claims share: one run of one setting in a process of its own, and results that survive interruption.

Every claim is a command: it does the runs that its file of results lacks, ``--jobs`` at once, then writes table and
figure. ``--launcher "nice -n 19"`` goes before each run; ``--draw-only`` runs nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import figures
from tables import Record
from tqdm import tqdm

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

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


@dataclass(frozen=True)
class Setting:
    """One line of a table: a name and what it changes on the command line of ``pfc-train``."""

    name: str
    overrides: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


def train(
    overrides: Sequence[str],
    prepare: Callable[[Any], object] | None = None,
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
    from lightning_pfc.evaluation.embedders import TorchEmbedder, embed_images

    return embed_images(TorchEmbedder(module, images.image_shape), images, flip="none", batch_size=256)


def all_pairs(module: Any, data: Any) -> Record:
    """True accept rates over all pairs of a test set: ``NAME/all_pairs_tar@far=1e-4``."""
    from lightning_pfc.evaluation.all_pairs import all_pairs_tar
    from lightning_pfc.metrics.verification import rate_name

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
    parser.add_argument("--results", type=Path, help="another file of results; its figures lie beside it")
    parser.add_argument("--launcher", default="", help="a command to put before each run")
    parser.add_argument("--draw-only", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once, each on one thread")
    parser.add_argument("--only", nargs=2, metavar=("SETTING", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="more words of pfc-train, for every run: data.source.path=...")
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error(f"--jobs {arguments.jobs}: give at least 1.")
    results: Path = arguments.results or Path("runs/claims") / f"{claim}.jsonl"
    if arguments.results is not None:
        figures.IMAGES = results.parent
    others = [r for r in load(results) if r.get("overrides", []) != arguments.overrides]
    if others:
        parser.error(
            f"{results} holds runs made with {others[0].get('overrides', [])}, not {arguments.overrides}: a table does "
            "not mix them. Give the same words, or another file with --results."
        )
    by_name = {setting.name: setting for setting in settings}
    if arguments.only:
        name, seed = arguments.only[0], int(arguments.only[1])
        setting = by_name[name]
        setting = replace(setting, overrides=(*setting.overrides, *arguments.overrides))
        words = {"overrides": arguments.overrides} if arguments.overrides else {}
        record = {"claim": claim, "setting": name, "seed": seed, **words, **run(setting, seed)}
        with results.open("a") as file:
            file.write(json.dumps(record) + "\n")
        return
    results.parent.mkdir(parents=True, exist_ok=True)
    succeeded: list[bool] = []
    if not arguments.draw_only:
        done = {(record["setting"], record["seed"]) for record in load(results)}
        missing = [(s.name, seed) for seed in seeds for s in settings if (s.name, seed) not in done]
        start = [*shlex.split(arguments.launcher), sys.executable, sys.argv[0], "--results", str(results), "--only"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}

        def do(pair: tuple[str, int]) -> bool:
            log = results.with_suffix(".log")
            with log.open("a") as file:
                command = [*start, pair[0], str(pair[1]), "--", *arguments.overrides]
                status = subprocess.run(command, check=False, env=environment, stdout=file, stderr=file).returncode
            if status:
                tqdm.write(f"{pair[0]}, seed {pair[1]}: FAILED, see the end of {log}")
            return status == 0

        with ThreadPoolExecutor(arguments.jobs) as pool:
            succeeded = list(tqdm(pool.map(do, missing), total=len(missing), unit="run", desc=claim))
    order = list(by_name)
    records = [record for record in load(results) if record["setting"] in by_name]
    report(sorted(records, key=lambda record: (order.index(record["setting"]), record["seed"])))
    if not all(succeeded):
        sys.exit(1)


def load(results: Path) -> list[Record]:
    """What was measured so far."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text().splitlines() if line.strip()]


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
