"""Going on with a run: with its own words, on whatever is typed over them, and without losing its record."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf

from lightning_pfc import train
from lightning_pfc.config import compose
from lightning_pfc.runs.resuming import as_it_was, earlier_run
from tests import console

TINY = [
    "experiment=none",
    "data=synthetic",
    "data.source.num_classes=40",
    "data.source.images_per_class=4",
    "data.source.image_size=8",
    "data.source.test_classes=20",
    "data.source.impostors=200",
    "data.batch_size=16",
    "backbone.embedding_dim=8",
    "+backbone.options.widths=[8,8]",
    "+backbone.options.depths=[0,0]",
    "head.sample_rate=0.5",
    "loss=arcface",
    "loss.scale=16",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "plots=false",
    "logger=csv",
]


@pytest.fixture(autouse=True)
def own_group(no_leaked_process_group: None) -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of the command, with ``=`` and a bracket in its path."""
    folder = tmp_path_factory.mktemp("runs") / "a=1 (b)"
    answer = pfc_train(*TINY, "trainer.max_epochs=1", f"output_dir='{folder}'", cwd=folder.parent)
    assert answer.returncode == 0, answer.stderr
    return folder


def pfc_train(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return console.run("lightning_pfc.commands.train", *words, cwd=cwd)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} | {
        f".hydra/{path.name}": path.read_bytes() for path in (folder / ".hydra").iterdir()
    }


def taken(*typed: str) -> DictConfig:
    earlier = earlier_run(typed)
    assert earlier is not None
    return as_it_was(compose([w for w in earlier.words if not w.startswith("hydra.")]), earlier, compose)


def test_resume_goes_on_with_its_own_words(run: Path) -> None:
    before = content(run)
    answer = pfc_train(f"resume='{run}'", "trainer.max_epochs=2", cwd=run.parent)
    assert answer.returncode == 0, answer.stderr
    first = json.loads(before["results.json"])
    now = json.loads((run / "results.json").read_text())
    assert (first["steps"], now["steps"]) == (10, 20)
    after = content(run)
    assert {name: after[name] for name in before if name not in ("results.json", "metrics.csv", "pfc-train.log")} == {
        name: text for name, text in before.items() if name not in ("results.json", "metrics.csv", "pfc-train.log")
    }
    assert after["results_1.json"] == before["results.json"]
    assert after["metrics.csv"].startswith(before["metrics.csv"].splitlines()[0][:4])
    second = OmegaConf.load(run / "config_2.yaml")
    assert second.trainer.max_epochs == 2
    assert second.data.source._target_ == "lightning_pfc.data.Synthetic"
    assert second.loss.scale == 16

    results = train(f"resume='{run}'", "fit=false", f"ckpt_path='{run}/checkpoints/last.ckpt'", "trainer.max_epochs=2")
    assert results["metrics"]["test/accuracy"] == pytest.approx(now["metrics"]["test/accuracy"])
    assert not (run / "config_3.yaml").exists()  # a start that only tests is nothing to go on with
    config = taken(f"resume='{run}'")
    assert (config.fit, config.test, config.trainer.max_epochs) == (True, True, 2)


def test_whether_a_start_trains_is_its_own_word(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    words = ["data=synthetic", "fit=false", "loss.scale=20", f"output_dir={tmp_path}"]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(compose(words), resolve=True))
    (tmp_path / "overrides.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(words)))
    config = taken(f"resume={tmp_path}")
    assert (config.fit, config.loss.scale) == (True, 20)
    assert taken(f"resume={tmp_path}", "fit=false").fit is False


def test_a_start_that_is_refused_leaves_the_run_as_it_was(run: Path) -> None:
    """The next one goes on with the words that made the run, not with those that were refused."""

    def kept() -> dict[Path, bytes]:
        files = (path for path in run.rglob("*") if path.is_file() and path.name not in ("pfc-train.log", ".run.lock"))
        return {path: path.read_bytes() for path in files}

    before = kept()
    for word, said in (
        ("backbone.embedding_dim=24", "is of another architecture than the model"),
        ("data.source.num_classes=44", "has 40 classes, and the model 44"),
    ):
        answer = pfc_train(f"resume='{run}'", "trainer.max_epochs=9", word, cwd=run.parent)
        assert answer.returncode > 0
        assert said in answer.stderr, answer.stderr
        assert "Traceback" not in answer.stderr
        assert kept() == before
    assert taken(f"resume='{run}'").model.embedding_dim == 8


def test_a_checkpoint_of_a_run_brings_its_config(run: Path, tmp_path: Path) -> None:
    before = content(run)
    word = f"ckpt_path='{run}/checkpoints/last.ckpt'"
    results = train(word, "trainer.max_epochs=1", "fit=false", f"output_dir={tmp_path / 'other'}")
    assert content(run) == before
    assert "loss=arcface" in results["overrides"]
    config: Any = OmegaConf.load(tmp_path / "other" / "config.yaml")
    assert config.data.source.num_classes == 40


def test_typed_words_come_over_those_of_the_run(run: Path) -> None:
    config = taken(f"resume='{run}'", "head.sample_rate=1", "loss=cosface", "trainer.max_epochs=12")
    assert (config.head.sample_rate, config.model.head.sample_rate) == (1, 1)
    assert OmegaConf.to_container(config.model.loss, resolve=True) == {**compose(["loss=cosface"]).loss, "scale": 16}
    assert config.loss.scale == 16
    assert config.trainer.max_epochs == 12
    assert config.data.batch_size == 16
    assert config.output_dir == str(run)
    assert config.callbacks.checkpoint.dirpath == f"{run}/checkpoints"


def test_a_run_keeps_defaults_that_have_changed_since(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    config = compose(["data=synthetic", f"output_dir={tmp_path}"])
    for key, value in (("optimizer.lr", 0.125), ("data.batch_size", 7), ("trainer.new_option", True)):
        OmegaConf.update(config, key, value, force_add=True)
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))  # and no words, as of old
    found = taken(f"resume={tmp_path}", "head.sample_rate=0.25")
    assert (found.optimizer.lr, found.data.batch_size, found.trainer.new_option) == (0.125, 7, True)
    assert found.model.optimizer.lr == 0.125
    assert found.data.source._target_ == "lightning_pfc.data.Synthetic"
    assert (found.head.sample_rate, found.model.head.sample_rate) == (0.25, 0.25)


def test_a_run_of_before_names_classes_that_no_config_names_any_more(tmp_path: Path) -> None:
    """It was refused: its config names Lightning's ModelCheckpoint, in whose place there is one of the package."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    config = compose(["data=synthetic", f"output_dir={tmp_path}"])
    lightnings = "lightning.pytorch.callbacks.ModelCheckpoint"
    earlier = {"callbacks.checkpoint": lightnings, "callbacks.evaluation.settings": "lightning_pfc.protocols.Settings"}
    for key, target in earlier.items():
        OmegaConf.update(config, f"{key}._target_", target, force_add=True)
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    found = taken(f"resume={tmp_path}")
    assert found.callbacks.checkpoint._target_ == "lightning_pfc.callbacks.RunCheckpoint"
    assert found.callbacks.evaluation.settings._target_ == "lightning_pfc.evaluation.EvaluationSettings"
    word = f"callbacks.checkpoint._target_={lightnings}"
    assert taken(f"resume={tmp_path}", word).callbacks.checkpoint._target_ == lightnings


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("nothing", "there is no such folder"),
        ("file", "it is a file; ckpt_path=FILE"),
        ("empty", "it has no config.yaml"),
        ("unborn", "has no checkpoint in checkpoints/"),
        ("no YAML", "is no YAML"),
        ("another's", "is not the config of a run of pfc-train"),
        ("a class", "which no config of this package has"),
        ("environment", "holds '${'"),
    ],
)
def test_what_cannot_be_resumed(made: str, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    if made == "file":
        folder.write_text("")
    elif made != "nothing":
        folder.mkdir()
    if made not in ("nothing", "file", "empty"):
        config = compose(["data=synthetic", f"output_dir={folder}"])
        if made == "a class":
            config.data.source._target_ = "lightning_pfc.commands.train.sys.exit"
        text = OmegaConf.to_yaml(config, resolve=True)
        if made == "environment":
            text += "more: ${oc.env:HOME}\n"
        texts = {"no YAML": "a: [", "another's": "a: 1"}
        (folder / "config.yaml").write_text(texts.get(made, text))
        if made != "unborn":
            (folder / "checkpoints").mkdir()
            (folder / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(ValueError, match=said.replace("$", r"\$")) as raised:
        taken(f"resume={folder}")
    assert "\n" not in str(raised.value)


def test_a_sweep_does_not_go_on_with_a_run(run: Path) -> None:
    with pytest.raises(ValueError, match="-m makes many"):
        earlier_run(["-m", f"resume='{run}'", "seed=0,1"])
