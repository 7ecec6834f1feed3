"""A word of a command whose value is of another kind than its key takes: every key that there is."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lightning_pfc.commands.idle_keys import warn_idle_keys
from lightning_pfc.commands.run_words import check_eval_words, check_run_words
from lightning_pfc.commands.trainer import make_callbacks, make_trainer
from lightning_pfc.config import compose
from lightning_pfc.config_words import config_dir
from lightning_pfc.optim.factory import create_optimizer, create_scheduler

WORDS = [
    *("experiment=none", "data=folder", "data.source.path=faces", "data.source.image_size=16", "optimizer=sgd"),
    *("backbone.embedding_dim=8", "backbone=timm", "backbone.name=test_vit", "trainer.accelerator=cpu", "logger=none"),
]
VALUES = ("abc", "[1, x]")
GROUPS = [path.name for path in config_dir().iterdir() if path.is_dir()]
TEXTS = {  # keys that take any text
    *("resume", "ckpt_path", "init_from", "predict.source", "output_dir", "data.source.path", "data.source.format"),
    *(
        "data.source.allow",
        "data.source.validation",
        "data.source.test",
        "data.classes_of",
        "head.row_folder",
        "head.match",
    ),
    *("callbacks.checkpoint.dirpath", "callbacks.checkpoint.filename", "callbacks.checkpoint.monitor"),
    *("callbacks.preemption.dirpath",),
}
NAMED = {  # keys that a message names by what they choose
    "backbone.name": "backbone",
    "backbone.options": "backbone_options",
    "loss.name": "loss ",
    "head.sampler.name": "sampler ",
    "optimizer.name": "optimizer ",
    "scheduler.name": "scheduler ",
    "trainer.max_time": "max_time|duration",
}


def keys(config: Any, before: str = "") -> Iterator[str]:
    for name, value in config.items():
        if name not in ("_target_", "_partial_"):
            yield before + name
            if isinstance(value, dict):
                yield from keys(value, f"{before}{name}.")


def start(config: Any, part: str, folder: Path) -> None:
    """What a run makes of its words, without data and without training; of one part of them."""
    check_run_words(config)
    if part in ("trainer", "callbacks", "logger"):
        make_trainer(config, make_callbacks(config), folder)
    elif part == "data":
        instantiate(config.data, _convert_="all")
    elif isinstance(config.get(part), DictConfig):
        module = instantiate(config.model, num_classes=5, input_size=[3, 16, 16], _convert_="all").to("cpu")
        optimizer = create_optimizer(module, module.optimizer_config, row_sparse=False, global_batch=8)
        create_scheduler(optimizer, module.scheduler_config, total_steps=9, steps_per_epoch=3)
    else:
        make_callbacks(config)
        warn_idle_keys(config)


def answer(composed: DictConfig, key: str, value: str, folder: Path) -> str:
    """What a wrong value is answered with; nothing, where it is taken."""
    config = copy.deepcopy(composed)
    try:
        if key in GROUPS:  # a choice of files
            config = compose([*WORDS, f"{key}={value}"])
        else:
            OmegaConf.update(config, key, OmegaConf.create(f"[{value}]")[0], merge=False)
        start(config, key.partition(".")[0], folder)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_every_key_is_named_where_its_value_is_of_another_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a folder of rows is made
    composed = compose(WORDS)
    names = list(keys(OmegaConf.to_container(composed)))
    assert len(names) > 150
    answers = {(key, value): answer(composed, key, value, tmp_path) for key in names for value in VALUES}
    named = {key: NAMED.get(key, key.rpartition(".")[2]) for key in names}
    assert {case: said for case, said in answers.items() if said and not re.search(named[case[0]], said)} == {}
    assert [case for case, said in answers.items() if not said and case[0] not in TEXTS] == []


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("seed=-1", "seed=-1 must lie between 0 and 4294967295"),
        ("predict.k=0", "predict.k=0 must be at least 1"),
        ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1 must be at least 0"),
        ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0 must be at least 1"),
        (
            "callbacks.lr=3",
            "callbacks.lr=3 stands in place of a group of keys; give one of them",
        ),
        ("choices=non", "choices='non': choices must be one of 'auto', 'none', 'made' or None"),
        ("init_parts=[neck,tail]", "init_parts must be a list of one of 'backbone', 'neck', 'head' or None"),
        ("data=2.5", "data=2.5: data is one of base, "),
    ],
)
def test_a_value_out_of_range_is_named(word: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        check_run_words(compose([*WORDS, word]))


@pytest.mark.parametrize(
    "word", ["plots=abc", "device=-1", "settings=3", "calibrate=-1", "embedder=3", "protocols=abc"]
)
def test_so_does_pfc_eval(word: str) -> None:
    key, _, value = word.partition("=")
    with pytest.raises(ValueError, match=rf"{key}='?{value}'?"):
        check_eval_words(compose([word], config_name="eval"))


def test_what_nobody_gave_is_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_idle_keys(compose([]))
        warn_idle_keys(compose(WORDS))
