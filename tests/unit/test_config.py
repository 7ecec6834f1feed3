"""Every config composes and builds its part; wrong names are answered with those that exist."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from lightning_pfc import PartialFC
from lightning_pfc.config import RUN_DIR_VARIABLE, compose, explain, run_dir
from lightning_pfc.config_words import config_dir
from lightning_pfc.losses import Loss, loss_from_config
from lightning_pfc.models.backbone import create_backbone
from lightning_pfc.optim.factory import create_optimizer, create_scheduler
from lightning_pfc.runs.resuming import as_it_was, earlier_run
from tests import console

PARTS = {"base", "face"}  # what the others stand on


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml") if path.stem not in PARTS)


def plain(node: DictConfig) -> Any:
    return OmegaConf.to_container(node, resolve=True)


@pytest.fixture(autouse=True)
def run_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(tmp_path))


def test_the_stable_keys_exist() -> None:
    config = compose()
    for key in ("head.sample_rate", "head.seed", "data.batch_size", "backbone.name", "trainer.devices", "seed"):
        assert OmegaConf.select(config, key) is not None, key
    assert "ckpt_path" in config
    assert config.head.seed == config.seed
    assert compose(["seed=7"]).head.seed == 7


def test_every_argument_of_the_head_is_a_key_and_no_other() -> None:
    """Written once: in the class, and as a default in one file."""
    arguments = inspect.signature(PartialFC).parameters.values()
    elsewhere = {"embedding_dim", "num_classes", "loss"}  # of the backbone, the data and a group of its own
    not_in_files = {"comm", "device", "check_finite"}  # of the strategy
    config = plain(compose().model)
    assert config["head"].pop("match") is None  # of the strategy, which reads checkpoints
    assert set(config["head"]) == {each.name for each in arguments} - elsewhere - not_in_files
    assert not set(config) & {"head_options", "sample_rate", "seed"}
    defaults = {each.name: each.default for each in arguments if each.name in config["head"]}
    head = config["head"] | {"sampler": "uniform", "dtype": torch.float32, "auxiliary_losses": ()}
    assert head == defaults


def test_earlier_keys_of_the_head_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_pfc.names.renamed._told", set())
    with pytest.warns(FutureWarning) as caught:
        config = compose(
            ["model.sample_rate=0.1", "model.seed=3", "model.head_options.chunk_size=7", "+model.head_options.x=1"]
        )
    assert [(config.head[key], config.model.head[key]) for key in ("sample_rate", "seed", "chunk_size", "x")] == [
        (0.1, 0.1), (3, 3), (7, 7), (1, 1)
    ]  # fmt: skip
    assert [str(w.message).split(";")[0] for w in caught] == [
        "model.sample_rate is called head.sample_rate now",
        "model.seed is called head.seed now",
        "model.head_options.chunk_size is called head.chunk_size now",
        "model.head_options.x is called head.x now",
    ]


@pytest.mark.parametrize("name", options("backbone"))
def test_every_backbone_builds_without_storage(name: str) -> None:
    config = plain(compose([f"backbone={name}"]).backbone)
    size = (1, 32, 32) if name == "glyphnet" else None
    with torch.device("meta"):
        model = create_backbone(config["name"], input_size=size, options=config["options"])
    assert sum(p.numel() for p in model.parameters()) > 1000


@pytest.mark.parametrize("name", options("loss"))
def test_every_loss_builds(name: str) -> None:
    config = plain(compose([f"loss={name}"]).loss)
    assert isinstance(loss_from_config(config), Loss)


@pytest.mark.parametrize("rate", [1.0, 0.1])
@pytest.mark.parametrize("name", options("optimizer"))
def test_every_optimizer_takes_a_step(name: str, rate: float) -> None:
    config = plain(compose([f"optimizer={name}"]).optimizer)
    model = nn.ModuleDict({"backbone": nn.Linear(4, 8)})
    model["head"] = PartialFC(embedding_dim=8, num_classes=20, loss="CosFace", sample_rate=rate)
    optimizer = create_optimizer(model, config, row_sparse=rate < 1, global_batch=4)
    assert {group["name"] for group in optimizer.param_groups} >= {"backbone", "head"}
    before = model["backbone"].weight.detach().clone()  # type: ignore[operator]
    model["head"](model["backbone"](torch.randn(4, 4)), torch.arange(4)).backward()
    optimizer.step()
    assert not torch.equal(before, model["backbone"].weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", options("scheduler"))
def test_every_schedule_runs_to_its_end(name: str) -> None:
    config = plain(compose([f"scheduler={name}", "scheduler.warmup_epochs=0.5"]).scheduler)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = create_scheduler(optimizer, config, total_steps=200, steps_per_epoch=10)
    rates = []
    for _ in range(200):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[0] < rates[4] == max(rates) == 1.0


@pytest.mark.parametrize("group", ["callbacks", "logger"])
def test_every_callback_and_logger_builds(group: str, tmp_path: Path) -> None:
    for name in options(group):
        config = compose([f"{group}={name}", f"output_dir={tmp_path}"])
        built = [instantiate(node, _convert_="all") for node in config[group].values()]
        assert bool(built) == (name != "none")


@pytest.mark.parametrize("name", ["default"])
def test_the_trainer_builds_with_the_strategy(name: str) -> None:
    trainer = instantiate(compose([f"trainer={name}", "trainer.accelerator=cpu"]).trainer, logger=False)
    assert type(trainer.strategy).__name__ == "PartialFCStrategy"


@pytest.mark.parametrize("name", ["glyphs", "synthetic", "folder"])
def test_data_build(name: str, tmp_path: Path) -> None:
    extra = [f"data.source.path={tmp_path}"] if name == "folder" else []
    data = instantiate(compose([f"data={name}", *extra]).data, _convert_="all")
    assert data.batch_size > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["loss=cosfac"], "Did you mean cosface"),
        (["los=cosface"], "Did you mean loss"),
        (["head.sampel_rate=0.1"], "Did you mean sample_rate"),
        (["trainer.max_epoch=3"], "Did you mean max_epochs"),
        (["head.sampel_rate=0.1"], "There are: "),
        (["+trainer.max_epochs=3"], r"trainer.max_epochs is there already. Leave the \+ out"),
        (["~loss.nothing"], "loss has no key nothing"),
        (["~loss.interclass_filter"], "loss.interclass_filter is null, .* Leave ~loss.interclass_filter out"),
        (["~loss.margin=3"], "loss.margin is 0.4, and not 3. Give the value that it has, or ~loss.margin alone"),
    ],
)
def test_a_wrong_name_is_answered_with_those_that_exist(words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        compose(words)


def test_a_folder_of_ones_own_extends_the_groups(tmp_path: Path) -> None:
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text("name: CosFace\nmargin: 0.123\n")
    assert compose(["loss=mine"], config_dirs=[tmp_path]).loss.margin == 0.123


def test_a_folder_of_ones_own_comes_before_the_packages(tmp_path: Path) -> None:
    """A file of the user's that had a name of the package's was not read, and nothing said so."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder, margin in zip(folders, (0.123, 0.3), strict=True):
        (folder / "loss").mkdir(parents=True)
        (folder / "loss" / "arcface.yaml").write_text(f"name: CosFace\nmargin: {margin}\n")
    assert compose(["loss=arcface"], config_dirs=folders).loss == {"name": "CosFace", "margin": 0.123}
    for flag in (["--config-dir", str(folders[1])], [f"-cd={folders[1]}"], [f"--config-dir={folders[1]}"]):
        said = console.run("lightning_pfc.commands.train", *flag, "loss=arcface", "--cfg", "job", "--package", "loss")
        assert said.stdout.splitlines()[-2:] == ["name: CosFace", "margin: 0.3"], said.stderr
    missing = console.run("lightning_pfc.commands.train", "--config-dir", str(tmp_path / "none"), "--cfg", "job")
    assert missing.returncode == 1
    assert missing.stderr.splitlines()[-1].endswith("none' not found")


def test_optimizers_and_schedules_name_what_exists() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="Did you mean adamw"):
        create_optimizer(model, {"name": "adamww", "lr": 1.0}, row_sparse=False)
    with pytest.raises(ValueError, match=r"Did you mean momentum\?"):
        create_optimizer(model, {"name": "sgd", "lr": 1.0, "momemtum": 0.9}, row_sparse=False)
    for row_sparse in (False, True):
        with pytest.raises(ValueError, match="missed_steps='count'"):
            create_optimizer(model, {"name": "adamw", "lr": 1.0, "missed_steps": "count"}, row_sparse=row_sparse)
    with pytest.raises(ValueError, match="needs lr"):
        create_optimizer(model, {"name": "sgd"}, row_sparse=False)
    with pytest.raises(ValueError, match="no row-sparse form"):
        create_optimizer(model, {"name": "rmsprop", "lr": 1.0, "row_sparse": True}, row_sparse=False)
    with pytest.raises(ValueError, match="Did you mean cosine"):
        create_scheduler(torch.optim.SGD(model.parameters()), {"name": "cosin"}, total_steps=1, steps_per_epoch=1)


@pytest.mark.parametrize(("batch", "expected"), [(256, 0.05), (1024, 0.2)])
def test_the_learning_rate_follows_the_global_batch(batch: int, expected: float) -> None:
    config = {"name": "sgd", "lr": 0.1, "reference_batch": 512}
    optimizer = create_optimizer(nn.Linear(2, 2), config, row_sparse=False, global_batch=batch)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
    with pytest.raises(ValueError, match="reference_batch=512"):
        create_optimizer(nn.Linear(2, 2), config, row_sparse=False, global_batch=None)


class TestRunFolder:
    def test_a_slurm_job_has_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(RUN_DIR_VARIABLE)
        monkeypatch.setenv("SLURM_JOB_ID", "42")
        monkeypatch.setenv("SLURM_PROCID", "3")
        monkeypatch.setenv("SLURM_JOB_NAME", "train")
        assert run_dir("runs") == "runs/slurm-42"

    def test_two_runs_have_two(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv(RUN_DIR_VARIABLE)
        first = run_dir(str(tmp_path))
        Path(first).mkdir()
        assert run_dir(str(tmp_path)) != first

    def test_processes_that_cannot_agree_are_told_what_to_give(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(RUN_DIR_VARIABLE)
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
        with pytest.raises(ValueError, match=r"hydra\.run\.dir="):
            run_dir("runs")


def test_a_run_of_before_is_gone_on_with_under_the_new_keys(tmp_path: Path) -> None:
    """Its config has the head's options thrice; what it ran with is what it goes on with, but for what is typed now."""
    before = compose(["head.chunk_size=9", "head.sample_rate=0.3"])
    config = plain(before)
    head = config["model"].pop("head")
    del head["sample_rate"]
    config["model"] |= {"sample_rate": 0.25, "seed": head.pop("seed"), "head_options": {**head, "memory_budget": 7}}
    OmegaConf.save(OmegaConf.create(config), tmp_path / "config.yaml")
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- head.chunk_size=9\n- model.sample_rate=0.25\n")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"")
    for typed, expected in (([], (0.25, 9, 7)), (["head.sample_rate=0.5"], (0.5, 9, 7))):
        earlier = earlier_run([f"ckpt_path={tmp_path}/checkpoints/last.ckpt", *typed])
        assert earlier is not None
        model = plain(as_it_was(compose(earlier.words), earlier, compose).model)
        assert not set(model) & {"sample_rate", "seed", "head_options"}
        assert tuple(model["head"][key] for key in ("sample_rate", "chunk_size", "memory_budget")) == expected


@pytest.mark.parametrize("name", ["b\\s", "b\\\\s", "q'u", "e\\'u", "ends\\", "x=1,y", "a b", "b[0] {z} (p)"])
def test_a_run_folder_of_any_name_is_gone_on_with(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"")
    OmegaConf.save(OmegaConf.create(plain(compose([]))), folder / "config.yaml")
    inner = re.sub(r"(\\+)$", r"\1\1", str(folder))
    earlier = earlier_run([f'resume="{inner}"'])
    assert earlier is not None
    config = as_it_was(compose(earlier.words), earlier, compose)
    assert config.output_dir == str(folder)
    assert config.ckpt_path == str(folder / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize("word", ["output_dir=/tmp/${y}", "seed=${head.sample}", "data.batch_size=${nosuch:1}"])
def test_a_placeholder_that_stands_for_nothing_is_shown_with_its_word(word: str) -> None:
    config = compose([word, "trainer.max_epochs=1"])
    with pytest.raises(OmegaConfBaseException) as raised:
        OmegaConf.to_container(config, resolve=True)
    said = explain(raised.value, words=["trainer.default_root_dir=${output_dir}", word])
    assert said.startswith(f"{word}: ")
    assert "stands for the value of another key" in said
    assert "stands for" not in explain(raised.value, words=["seed=3"])


@pytest.mark.parametrize("word", ["output_dir=", "output_dir=null", "+output_dir=''", 'output_dir=""'])
def test_an_empty_output_dir_is_not_the_folder_one_is_in(word: str) -> None:
    with pytest.raises(ValueError, match="names no folder"):
        compose([word])
    assert compose(["output_dir=."]).output_dir == "."


@pytest.mark.parametrize("word", ["output_dir=a\\${y}", "output_dir=\\${now:%Y}"])
def test_a_run_folder_is_not_called_like_another_key(word: str) -> None:
    with pytest.raises(ValueError, match="Give another name: output_dir=FOLDER"):
        compose([word])
    assert compose(["output_dir=runs/${seed}"]).output_dir.startswith("runs/")
