"""Every published recipe composes, says what its source says, builds without storage, and trains a step on a CPU."""

from __future__ import annotations

import csv
import importlib
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lightning_pfc import PartialFC, train
from lightning_pfc.config import compose
from lightning_pfc.config_words import config_dir
from lightning_pfc.distributed.owner import set_owner
from lightning_pfc.losses import loss_from_config
from lightning_pfc.optim import SparseSGD

FOLDER = config_dir() / "experiment"
RECIPES = sorted(
    str(path.relative_to(FOLDER).with_suffix(""))
    for group in ("insightface", "plsc", "oneflow", "mxnet", "other")
    for path in (FOLDER / group).glob("*.yaml")
)
GOLDEN = Path(__file__).parents[1] / "golden" / "insightface_configs.csv"


@cache
def composed(recipe: str, *more: str) -> DictConfig:
    return compose([f"experiment={recipe}", *more])


def test_all_published_recipes_are_here() -> None:
    counts = {group: sum(recipe.startswith(group + "/") for recipe in RECIPES) for group in ("insightface", "plsc")}
    assert counts["insightface"] == 42 + 2  # and two that are documented without a config
    assert counts["plsc"] == 6 + 2  # and two of PLSC 2.2


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_is_consistent(recipe: str) -> None:
    config = composed(recipe)
    assert config.recipe.label in ("verified here", "config parity", "unverified")
    assert config.recipe.label == "unverified" or config.recipe.source.startswith("https://github.com/")
    trainer = config.trainer
    batch = config.data.batch_size * trainer.devices * trainer.num_nodes * trainer.accumulate_grad_batches
    assert batch == config.optimizer.reference_batch, "lr is meant for the recipe's own batch"
    loss_from_config(config.loss)
    if "milestones" in config.scheduler:
        epochs = trainer.max_epochs if trainer.max_epochs > 0 else trainer.max_steps * batch / config.recipe.num_images
        assert list(config.scheduler.milestones) == sorted(config.scheduler.milestones)
        assert config.scheduler.milestones[-1] < epochs


@pytest.mark.parametrize("row", list(csv.DictReader(GOLDEN.open())), ids=lambda row: row["name"])
def test_insightface_recipe_says_what_its_source_says(row: dict[str, str]) -> None:
    config = composed(f"insightface/{row['name']}")
    trainer = config.trainer
    images = 300000 if row["name"] == "3millions" else int(row["images"])  # one image for each of its classes
    assert (config.recipe.num_classes, config.recipe.num_images) == (int(row["classes"]), images)
    assert config.backbone.name == row["net"].split("_dp")[0]
    margin = {"arcface": ("ArcFace", 0.5), "cosface": ("CosFace", 0.4)}[row["loss"]]
    assert (config.loss.name, config.loss.margin, config.loss.scale) == (*margin, 64.0)
    assert config.loss.interclass_filter == (float(row["filter"]) if row["filter"] else None)
    assert config.head.sample_rate == float(row["sample_rate"])
    assert (config.optimizer.name, config.optimizer.lr) == (row["optimizer"], float(row["lr"]))
    assert config.optimizer.weight_decay == float(row["wd"])
    assert config.data.batch_size == int(row["batch"])
    assert trainer.devices * trainer.num_nodes == int(row["gpus"])
    assert config.optimizer.reference_batch == int(row["total"])
    assert (trainer.max_epochs, config.scheduler.warmup_epochs) == (int(row["epochs"]), float(row["warmup"]))
    assert (trainer.gradient_clip_val, trainer.strategy.clip, config.seed) == (5.0, "backbone", 2048)


def test_every_recipe_says_what_its_source_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Field by field, or why not; and a label of parity stands only where there was a file to compare with."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "recipes" / "benchmarks" / "parity"))
    parity = importlib.import_module("compare")
    sources, meant = parity.read_golden(), parity.meant_differences()
    assert set(sources) <= set(RECIPES) == set(parity.recipes())
    wrong: list[str] = []
    used: set[str] = set()
    for recipe in RECIPES:
        fields = list(parity.compared(recipe, composed(recipe), sources.get(recipe, {}), meant))
        differ = [field for field in fields if not field.equal]
        wrong += [f"{recipe}: {f.name} is {f.source} there, {f.here} here" for f in differ if f.reason is None]
        used |= {recipe, recipe.split("/")[0]} if differ else set()
        assert fields or composed(recipe).recipe.label == "unverified", recipe
    assert not wrong
    assert set(meant) <= used  # no reason for what does not differ


def test_the_schedule_of_2021_composes() -> None:
    words = ("preset=paper_2021", "optimizer.lr=0.2", "trainer.max_epochs=25", "scheduler=multi_step")
    config = composed("insightface/ms1mv3_r50", *words, "scheduler.milestones=[10,16,22]")
    assert (config.optimizer.lr, config.trainer.max_epochs, config.optimizer.reference_batch) == (0.2, 25, 1024)
    assert (list(config.scheduler.milestones), config.head.sample_rate) == ([10, 16, 22], 1.0)


def test_recipes_build_without_storage() -> None:
    """The module of every recipe at its class count; networks that are alike are built once, then only the head."""
    networks: set[str] = set()
    for recipe in RECIPES:
        config = composed(recipe)
        model: Any = OmegaConf.to_container(config.model, resolve=True)
        classes = config.recipe.num_classes
        network = str(
            [model[key] for key in ("backbone", "backbone_options", "neck", "embedding_dim", "channels_last")]
        )
        own = {key: value for key, value in model["head"].items() if key != "match"}  # the strategy's
        with torch.device("meta"):
            if network in networks:
                head = PartialFC(embedding_dim=512, num_classes=classes, loss=model["loss"], **own)
            else:
                networks.add(network)
                module = instantiate(model, num_classes=classes, input_size=[3, 112, 112], _convert_="all")
                assert all(p.is_meta for p in module.backbone.parameters()), recipe
                head = module.head
        assert head.weight.shape == (classes, 512), recipe
        assert head.weight.is_meta, recipe
    assert len(networks) >= 10


def smoke(*overrides: str) -> dict[str, Any]:
    """A run under the smoke profile, which leaves no process group behind for the tests after it."""
    try:
        return train(*overrides, "profile=cpu_smoke")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        set_owner(None, None)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_trains_one_step_on_a_cpu(recipe: str, tmp_path: Path) -> None:
    results = smoke(f"experiment={recipe}", f"output_dir={tmp_path}")
    assert results["steps"] == 1
    assert math.isfinite(results["train/loss"])


def test_each_class_count_takes_a_step() -> None:
    counts = {int(composed(recipe).recipe.num_classes) for recipe in RECIPES}
    assert len(counts) >= 10
    for classes in sorted(counts):
        one_step(classes)


def one_step(classes: int) -> None:
    head = PartialFC(embedding_dim=8, num_classes=classes, loss="cosface", sample_rate=1e-3, seed=1)
    backbone = torch.nn.Linear(12, 8)
    optimizer = SparseSGD([*backbone.parameters(), *head.parameters()], lr=0.1, momentum=0.9)
    labels = torch.tensor([0, classes - 1, classes // 2])
    value = head(backbone(torch.ones(3, 12)), labels)
    value.backward()
    before = head.weight.detach()[labels].clone()
    optimizer.step()
    assert torch.isfinite(value), classes
    assert (head.weight.detach()[labels] != before).any(1).all(), classes


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("paper_2021", ("exact", True, 2.0)),
        ("insightface_2022", ("exact", False, 2.0)),
        ("insightface_2023", ("straight_through", False, 1.0)),
        ("plsc", ("exact", True, 2.0)),
    ],
)
def test_presets_switch_three_things_together(preset: str, expected: tuple[Any, ...]) -> None:
    for words in (["loss=arcface"], ["experiment=insightface/ms1mv3_r50"]):
        config = compose([*words, f"preset={preset}"])
        assert (config.loss.margin_grad, config.optimizer.row_sparse, config.scheduler.power) == expected


def test_profiles_leave_the_recipe_alone() -> None:
    recipe = "insightface/wf42m_pfc03_32gpu_r50"
    for profile, devices, nodes in (("one_gpu", 1, 1), ("slurm_4x8", 8, 4)):
        config = composed(recipe, f"profile={profile}")
        assert (config.trainer.devices, config.trainer.num_nodes) == (devices, nodes)
        for part in ("optimizer", "scheduler", "loss", "head", "backbone"):
            assert config[part] == composed(recipe)[part]


def test_additions_are_words_on_the_command_line(tmp_path: Path) -> None:
    results = smoke(
        "experiment=insightface/ms1mv3_mbf", "head.auxiliary_losses=[triplet,{name: supcon, weight: 0.1}]",
        f"output_dir={tmp_path}",
    )  # fmt: skip
    assert math.isfinite(results["train/loss"])
