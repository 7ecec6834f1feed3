"""pfc-train: what it leaves behind, and that any number of processes share one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from omegaconf import OmegaConf

from lightning_pfc import PartialFCModule, train
from lightning_pfc.callbacks import CSVLogger
from lightning_pfc.callbacks.csv_log import read_metrics
from tests import console

TINY = [
    "experiment=none",
    "data=synthetic",
    "data.source.num_classes=40",
    "data.source.images_per_class=8",
    "data.source.image_size=8",
    "data.source.test_classes=20",
    "data.source.impostors=500",
    "data.batch_size=16",
    "backbone.embedding_dim=8",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "trainer.max_epochs=2",
    "trainer.enable_progress_bar=false",
]

NET = ["+backbone.options.widths=[8,8]", "+backbone.options.depths=[0,0]"]


@pytest.fixture(autouse=True)
def own_group(no_leaked_process_group: None) -> Iterator[None]:
    """The strategy makes a group of one process, which a Trainer leaves behind."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def variables(**more: str) -> dict[str, str]:
    """Those of this process, without what a Trainer in it has left."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PL_", "MASTER_", "LOCAL_", "RANK", "WORLD_"))}
    return kept | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"} | more


def pfc_train(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return console.run("lightning_pfc.commands.train", *words, cwd=folder, env=variables())


def torchrun(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *words]
    where = variables(**environment)
    return subprocess.run(command, cwd=folder, env=where, capture_output=True, text=True, timeout=280, check=False)


def test_a_run_leaves_what_it_promises(tmp_path: Path) -> None:
    results = train(*TINY, *NET, f"output_dir={tmp_path / 'run'}", "loss=arcface", "head.sample_rate=0.5", "seed=3")
    folder = tmp_path / "run"
    written = json.loads((folder / "results.json").read_text())
    assert written["metrics"] == results["metrics"]
    assert {"test/accuracy", "test/auc", "test/tar@far=1e-3", "val/accuracy", "train/loss"} <= set(written["metrics"])
    assert written["test/accuracy"] == written["metrics"]["test/accuracy"]
    assert written["seed"] == 3
    assert written["steps"] == 2 * (40 * 8 // 16)
    assert written["samples"] == written["steps"] * 16
    assert written["samples_per_second"] > 0
    assert written["seconds"] > 0
    assert written["peak_memory_bytes"]["host"] > 1e6
    assert {"python", "torch", "lightning", "lightning-pfc"} <= set(written["versions"])
    config = OmegaConf.load(folder / "config.yaml")
    assert (config.head.seed, config.loss.name, config.output_dir) == (3, "ArcFace", str(folder))
    rows = read_metrics(folder / "metrics.csv")
    assert len([row for row in rows if "train/loss" in row]) == written["steps"]
    assert any("lr-SparseAdamW/head" in row for row in rows)
    assert list((folder / "tensorboard").glob("events.*"))
    for name in ("loss", "roc", "scores_test", "hardest_pairs_test"):
        assert (folder / "plots" / f"{name}.png").stat().st_size > 1000
    module = PartialFCModule.load_from_checkpoint(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert module.head.sample_rate == 0.5


def test_the_same_words_give_the_same_run(tmp_path: Path) -> None:
    runs = [train(*TINY, *NET, f"output_dir={tmp_path / name}", "plots=false", "logger=none") for name in "ab"]
    assert runs[0]["metrics"]["train/loss"] == runs[1]["metrics"]["train/loss"]
    assert runs[0]["metrics"]["test/auc"] == runs[1]["metrics"]["test/auc"]


def test_a_resumed_log_goes_on(tmp_path: Path) -> None:
    first = CSVLogger(tmp_path)
    for step in range(5):
        first.log_metrics({"loss": float(step)}, step)
    first.finalize("failed")
    second = CSVLogger(tmp_path)
    second.log_metrics({"loss": 30.0, "new": 1.0}, 3)
    second.finalize("success")
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [(row["step"], row["loss"]) for row in rows] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 30.0)]
    assert rows[-1]["new"] == 1.0


def test_bad_words_are_answered_in_one_line(tmp_path: Path) -> None:
    answer = pfc_train(tmp_path, "loss=cosfac")
    assert answer.returncode != 0
    assert "Did you mean cosface" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not list(tmp_path.iterdir())


def test_help_teaches(tmp_path: Path) -> None:
    answer = pfc_train(tmp_path, "--help")
    assert answer.returncode == 0
    assert "pfc-train -m seed=0,1,2" in answer.stdout
    assert "loss: " in answer.stdout
    assert not list(tmp_path.iterdir())


def test_a_sweep_over_several_devices_is_refused(tmp_path: Path) -> None:
    answer = pfc_train(tmp_path, "-m", "seed=0,1", "trainer.devices=2", *TINY, *NET)
    assert answer.returncode != 0
    assert "torchrun --nproc-per-node=2" in answer.stderr


def losses(folder: Path) -> list[float]:
    return [row["train/loss"] for row in read_metrics(folder / "metrics.csv") if "train/loss" in row]


def run_folders(folder: Path) -> list[Path]:
    return sorted((folder / "runs").iterdir())


# No batch statistics, so that the ranks cannot differ from one process.
NO_STATISTICS = [
    "backbone.name=vit_tiny_patch16_224",
    "+backbone.options.patch_size=4",
    "+backbone.options.depth=2",
    "+backbone.options.embed_dim=24",
    "+backbone.options.num_heads=2",
    "backbone.neck=linear",
    "optimizer=adamw",  # gentle: a run that diverges doubles its rounding at every step
    "optimizer.lr=0.0005",
    "trainer.max_epochs=3",
    "trainer.limit_val_batches=0",
    "test=false",
    "plots=false",
]


@pytest.mark.parametrize("rate", ["1.0", "0.1"])
def test_two_processes_train_as_one(tmp_path: Path, rate: str) -> None:
    words: list[Any] = [*TINY, *NO_STATISTICS, f"head.sample_rate={rate}"]
    for number, more in (("1", ["data.batch_size=16"]), ("2", ["data.batch_size=8", "trainer.devices=2"])):
        folder = tmp_path / number
        folder.mkdir()
        answer = pfc_train(folder, *words, *more)
        assert answer.returncode == 0, answer.stderr
    (one,), (two,) = run_folders(tmp_path / "1"), run_folders(tmp_path / "2")
    assert len(losses(one)) == 60
    assert losses(two)[:50] == pytest.approx(losses(one)[:50], abs=1e-4)


def test_a_sweep_runs_each_job_in_its_own_folder(tmp_path: Path) -> None:
    answer = pfc_train(tmp_path, "-m", "seed=0,1", *TINY, *NET, "trainer.max_epochs=1", "plots=false")
    assert answer.returncode == 0, answer.stderr
    (sweep,) = (tmp_path / "multirun").iterdir()
    seeds = {json.loads((sweep / job / "results.json").read_text())["seed"] for job in ("0", "1")}
    assert seeds == {0, 1}
