"""Machines that nobody tests on, played: without what Windows lacks, and with Apple's GPU taken by itself."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
from lightning.fabric.accelerators.mps import MPSAccelerator

import lightning_pfc
from lightning_pfc import PartialFCStrategy
from lightning_pfc.callbacks import Preemption
from tests import console
from tests.trainer.like_windows import UNIX_ONLY

ROOT = Path(lightning_pfc.__file__).parent
TINY = (
    "experiment=none",
    "data=synthetic",
    "data.source.num_classes=40",
    "data.source.images_per_class=4",
    "data.source.image_size=8",
    "data.source.test_classes=20",
    "data.source.impostors=20",
    "data.batch_size=16",
    "backbone.embedding_dim=8",
    "+backbone.options.widths=[8,8]",
    "+backbone.options.depths=[0,0]",
    "trainer.max_epochs=1",
    "trainer.enable_progress_bar=false",
    "plots=false",
    "test=false",
)


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=dict(os.environ) | {"PYTHONPATH": str(ROOT.parent)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_a_run_needs_nothing_that_windows_lacks(tmp_path: Path) -> None:
    run(tmp_path, "-m", "tests.trainer.like_windows", "run")
    assert (tmp_path / "run" / "results.json").exists()
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_modules_import_what_every_system_has() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), name.split(".")[0])
        for path in ROOT.rglob("*.py")
        for node in ast.parse(path.read_text()).body
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not [each for each in found if each[1] in UNIX_ONLY]


def test_signals_that_a_system_does_not_have_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [each.name for each in Preemption().signals] == ["SIGTERM", "SIGUSR1"]
    monkeypatch.delattr(signal, "SIGUSR1")
    assert [each.name for each in Preemption().signals] == ["SIGTERM"]


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))


@pytest.mark.usefixtures("apple")
@pytest.mark.parametrize("accelerator", ["auto", "mps", "gpu"])
@pytest.mark.parametrize("strategy", ["pfc", "object"])
def test_the_strategy_never_takes_apples_gpu_in_silence(accelerator: str, strategy: str) -> None:
    chosen = PartialFCStrategy() if strategy == "object" else strategy
    with pytest.raises(ValueError, match=r"accelerator='cpu'|accelerator=\"cpu\"") as caught:
        L.Trainer(strategy=chosen, accelerator=accelerator, devices=1, logger=False)
    assert "MPS" in str(caught.value)
    assert L.Trainer(strategy="pfc", accelerator="cpu", devices=1, logger=False).strategy.root_device.type == "cpu"


def test_the_command_trains_on_the_cpu_there_and_says_so(tmp_path: Path) -> None:
    done = console.run("tests.trainer.like_apple", *TINY, "output_dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "training on the CPU; Apple's GPU (mps) is not used" in done.stdout + done.stderr
    assert "accelerator: cpu" in (tmp_path / "run" / "config.yaml").read_text()
