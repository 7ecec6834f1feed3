"""No option is ignored in silence: each is changed, and then something is different, or a warning or an error says why.

Every option of every group is walked. What is built from it is run where that is quick (heads, losses, optimizers,
schedules), and looked at in all its attributes where it is not.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lightning_pfc import PartialFC
from lightning_pfc.commands.idle_keys import warn_idle_keys
from lightning_pfc.config import RUN_DIR_VARIABLE, compose
from lightning_pfc.config_words import config_dir
from lightning_pfc.heads.sampling import Frequency, Mixed, PositivesOnly, RateSchedule, Uniform
from lightning_pfc.ignored import IgnoredOptionWarning
from lightning_pfc.optim.factory import create_optimizer, create_scheduler
from lightning_pfc.strategies.whose import check_match

Build = Callable[[dict[str, Any]], Any]
CLASSES, DIM, BATCH = 40, 16, 8
TIME_AND_MEMORY = {"memory_budget", "chunk_size", "rows_on", "row_folder"}
"""Of the head: the same numbers, at another price. They are looked at as attributes."""


@pytest.fixture(autouse=True)
def run_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(tmp_path))
    monkeypatch.chdir(tmp_path)  # where words that are taken for paths lead


def options(group: str) -> list[str]:
    left_out = {"base", "face", "records", "none", "all", "default", "diagnostics", "evaluation"}  # made of the others
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml") if path.stem not in left_out)


def plain(node: DictConfig) -> dict[str, Any]:
    found: Any = OmegaConf.to_container(node, resolve=True)
    return found


def leaves(config: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in config.items():
        if isinstance(value, dict) and value and "name" not in value:
            yield from leaves(value, (*before, key))
        elif not key.startswith("_") and key != "name":
            yield (*before, key)


# What takes the place of a value that says nothing about its kind: of null, of words and of lists.
OTHERS: dict[str, list[Any]] = {
    "accelerator": ["cpu"],
    "augment": ["flip"],
    "auxiliary_losses": [["triplet"]],
    "additions": [["triplet"]],
    "benchmark": [True],
    "chunk_size": [5],
    "dtype": ["bfloat16"],
    "eval_batch_size": [3],
    "head_weight_decay": [0.5],
    "init_std": [0.5],
    "interclass_filter": [0.1],
    "missed_steps": ["decay", "skip"],
    "mix": [{"mixup": 0.2}],
    "pin_memory": [True],
    "reference_batch": [64],
    "row_sparse": [True, False],
    "sampler": ["mixed"],
    "warmup_steps": [3],
}


def changed(key: str, value: Any) -> list[Any]:
    """Other values for a key, of which one must make a difference."""
    if key in OTHERS:
        return [other for other in OTHERS[key] if other != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value * 2 + 3]
    if isinstance(value, float):
        return [value * 0.5 if value else 0.25, value + 1.0]
    if isinstance(value, list):
        return [[item * 0.5 for item in value] or ["x"]] if all(isinstance(v, int | float) for v in value) else [["x"]]
    return ["x", {"x": 1}] if isinstance(value, dict) else [f"{value or ''}x"]


def silent_keys(build: Build, config: dict[str, Any]) -> list[str]:
    """Keys whose change shows nowhere and is not answered, with what was tried."""
    before = build(copy.deepcopy(config))
    return [text for path in leaves(config) if (text := silent_key(build, config, path, before))]


def silent_key(build: Build, config: dict[str, Any], path: tuple[str, ...], before: Any) -> str:
    node: Any = config
    for part in path:
        node = node[part]
    untried = changed(path[-1], node)
    tried = []
    while untried:
        tried.append(untried.pop(0))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                after = build(with_value(config, path, tried[-1]))
            except Exception as error:  # an answer; where it names the choices, one of them must do something
                choices = re.search(r"must be one of ([\w, ]+)", str(error))
                if choices is None:
                    return ""
                untried = [word for word in choices[1].split(", ") if word not in (node, *tried)]
                continue
        if after != before or any(issubclass(w.category, IgnoredOptionWarning | FutureWarning) for w in caught):
            return ""
    return f"{'.'.join(path)}: {node!r} -> {tried}"


def with_value(config: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    other = copy.deepcopy(config)
    node = other
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    return other


def walk(group: str, option: str, build: Build, *words: str) -> None:
    assert silent_keys(build, plain(compose([f"{group}={option}", *words])[group])) == []


def trained(head: PartialFC, steps: int = 3) -> list[float]:
    """Losses and centers of some steps."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5)
    found: list[float] = []
    counts = torch.arange(1, CLASSES + 1) % 7 + 1
    head.set_class_counts(counts)
    for _ in range(steps):
        x = torch.randn(BATCH, DIM, generator=generator, requires_grad=True)
        labels = torch.randint(0, CLASSES, (BATCH,), generator=generator)
        x = x * torch.linspace(2, 80, BATCH)[:, None]  # weak and strong samples, for losses that look at lengths
        labels[-2:] = labels[0]
        optimizer.zero_grad()
        loss = head(x, labels)
        loss.backward()
        optimizer.step()
        found += [loss.item(), head.weight.detach().double().abs().sum().item()]
    return found


def run_head(config: dict[str, Any]) -> Any:
    match = check_match(config.pop("match"))  # of the strategy, which reads checkpoints
    head = PartialFC(embedding_dim=DIM, num_classes=CLASSES, loss="cosface", **config)
    return trained(head), match, [str(getattr(head, name)) for name in sorted(TIME_AND_MEMORY)]


@pytest.mark.parametrize("rate", ["0.3", "1.0"])
def test_options_of_the_head(rate: str) -> None:
    words = ["head.gradient_filter=0.3", f"head.sample_rate={rate}"]
    walk("head", "full", run_head, *words)


@pytest.mark.parametrize("option", sorted(path.stem for path in (config_dir() / "head" / "sampler").glob("*.yaml")))
def test_options_of_samplers(option: str) -> None:
    sampler = plain(compose([f"head/sampler={option}"]).head)["sampler"]

    def run(config: dict[str, Any]) -> Any:
        head = PartialFC(
            embedding_dim=DIM, num_classes=CLASSES, loss="cosface", sample_rate=0.4, sampler=config, check_finite=False
        )
        return trained(head, 5), str(head.sampler)

    assert silent_keys(run, sampler) == []


@pytest.mark.parametrize("option", options("loss"))
def test_options_of_losses(option: str) -> None:
    def run(config: dict[str, Any]) -> Any:
        return trained(PartialFC(embedding_dim=DIM, num_classes=CLASSES, loss=config, sample_rate=0.5), 4)

    walk("loss", option, run, *(["loss.start=1", "loss.lifetime=2"] if option == "vpl" else []))


@pytest.mark.parametrize("row_sparse", [False, True])
@pytest.mark.parametrize("option", options("optimizer"))
def test_options_of_optimizers(option: str, row_sparse: bool) -> None:
    def run(config: dict[str, Any]) -> Any:
        torch.manual_seed(0)
        model = nn.ModuleDict({"backbone": nn.Sequential(nn.Linear(4, DIM), nn.BatchNorm1d(DIM))})
        model["head"] = PartialFC(embedding_dim=DIM, num_classes=CLASSES, loss="cosface", sample_rate=0.4)
        optimizer = create_optimizer(model, config, row_sparse=row_sparse, global_batch=BATCH)
        for _ in range(4):
            optimizer.zero_grad()
            loss = model["head"](model["backbone"](torch.randn(BATCH, 4)), torch.randint(0, CLASSES, (BATCH,)))
            loss.backward()
            optimizer.step()
        return type(optimizer).__name__, [p.detach().double().abs().sum().item() for p in model.parameters()]

    walk("optimizer", option, run)


@pytest.mark.parametrize("option", options("scheduler"))
def test_options_of_schedules(option: str) -> None:
    def run(config: dict[str, Any]) -> Any:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = create_scheduler(optimizer, config, total_steps=200, steps_per_epoch=10)
        return [schedule.lr_lambdas[0](step) for step in range(200)]

    walk("scheduler", option, run)


def seen(thing: Any, depth: int = 4) -> Any:
    """Everything that an object holds, as far as it is plain."""
    if depth == 0 or thing is None or isinstance(thing, bool | int | float | str | Path | torch.device | torch.dtype):
        return str(thing)
    if isinstance(thing, dict):
        return {str(key): seen(value, depth - 1) for key, value in thing.items()}
    if isinstance(thing, list | tuple | set | frozenset):
        return [seen(value, depth - 1) for value in thing]
    return type(thing).__name__, seen(vars(thing), depth - 1) if hasattr(thing, "__dict__") else ""


@pytest.mark.parametrize("option", ["synthetic", "folder", "list"])
def test_options_of_data(option: str, tmp_path: Path) -> None:
    words = ["data.source.path=" + str(tmp_path)] if option != "synthetic" else []
    walk("data", option, lambda config: seen(instantiate(config, _convert_="all")), *words)


@pytest.mark.parametrize("option", [*options("callbacks"), *options("logger")])
def test_options_of_callbacks_and_loggers(option: str, tmp_path: Path) -> None:
    group = "callbacks" if (config_dir() / "callbacks" / f"{option}.yaml").is_file() else "logger"

    def build(config: dict[str, Any]) -> Any:
        return [seen(instantiate(node, _convert_="all")) for node in config.values()]

    walk(group, option, build, f"output_dir={tmp_path}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("trainer.gradient_clip_algorithm=value", "nothing is clipped"),
        ("trainer.strategy.clip=backbone", "nothing is clipped"),
    ],
)
def test_keys_that_do_nothing_together_with_others(words: str, said: str) -> None:
    with pytest.warns(IgnoredOptionWarning, match=said) as caught:
        warn_idle_keys(compose(["experiment=none", words]))
    assert words in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_idle_keys(compose(["experiment=none", words, "trainer.gradient_clip_val=1.0"]))


def test_finetune_that_changes_nothing() -> None:
    words = ["experiment=none", "data=synthetic", "optimizer=sgd"]
    with pytest.warns(IgnoredOptionWarning, match=r"finetune=base has no effect: .*choose frozen"):
        warn_idle_keys(compose([*words, "finetune=base"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_idle_keys(compose([*words, "finetune=base", "finetune.batch_norm=keep"]))
        for choice in set(options("finetune")) - {"base"}:
            warn_idle_keys(compose([*words, f"finetune={choice}"]))


@pytest.mark.parametrize("sampler", [Frequency(), Mixed(share=0.3), Uniform(correction=True)])
def test_a_sampler_without_a_rate(sampler: Any) -> None:
    with pytest.warns(IgnoredOptionWarning, match=r"sampler=.* has no effect: sample_rate=1 takes every class"):
        PartialFC(embedding_dim=4, num_classes=9, loss="cosface", sampler=sampler)


def test_samplers_that_choose_by_themselves_and_the_default_are_not_spoken_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PartialFC(embedding_dim=4, num_classes=9, loss="cosface")
        PartialFC(embedding_dim=4, num_classes=9, loss="cosface", sampler="frequency", sample_rate=0.5)
        PartialFC(embedding_dim=4, num_classes=9, loss="cosface", sampler=RateSchedule(start=0.2))
        PartialFC(embedding_dim=4, num_classes=9, loss="cosface", sampler=PositivesOnly(), sample_rate=0.0)


def test_missed_steps_of_a_dense_optimizer() -> None:
    model = nn.Linear(2, 2)
    for given in ("skip", "decay"):
        config = {"name": "adamw", "lr": 0.1, "missed_steps": given}
        with pytest.warns(IgnoredOptionWarning, match=f"missed_steps='{given}' has no effect: this AdamW is the dense"):
            create_optimizer(model, config, row_sparse=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert create_optimizer(model, config, row_sparse=True).defaults["missed_steps"] == given
    for given, meant in ((None, "skip"), ("auto", "decay")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            config = {"name": "adamw", "lr": 0.1, "missed_steps": given}
            assert create_optimizer(model, config, row_sparse=True).defaults["missed_steps"] == meant
            create_optimizer(model, config, row_sparse=False)


def test_the_default_run_says_nothing(recwarn: pytest.WarningsRecorder) -> None:
    config = compose(["data=synthetic"])
    warn_idle_keys(config)
    instantiate(config.data, _convert_="all")
    module = instantiate(config.model, num_classes=20, input_size=[1, 32, 32], _convert_="all")
    create_optimizer(module, plain(config.optimizer), row_sparse=False, global_batch=8)
    assert [w for w in recwarn if issubclass(w.category, IgnoredOptionWarning)] == []


def test_the_batch_of_evaluation_has_one_default() -> None:
    for batch in (8, 128):
        config = compose(["data=synthetic", f"data.batch_size={batch}"]).data
        assert instantiate(config, _convert_="all").eval_batch_size == 4 * batch
