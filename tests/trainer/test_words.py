"""Samplers, LARS and the average of weights as words of the command line: each trains, and says what it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from omegaconf import OmegaConf

from lightning_pfc import PartialFCModule, train
from lightning_pfc.config import compose
from lightning_pfc.config_words import config_dir
from lightning_pfc.heads import sampling as S
from tests.trainer.test_train import NET, TINY

WORDS = sorted(path.stem for path in (config_dir() / "head" / "sampler").glob("*.yaml"))


@pytest.fixture(autouse=True)
def own_group(no_leaked_process_group: None) -> Iterator[None]:
    """The strategy makes a group of one process, which a Trainer leaves behind."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def run(folder: Path, *words: str) -> dict[str, float]:
    made = train(*TINY, *NET, "trainer.max_epochs=1", "plots=false", "logger=none", f"output_dir={folder}", *words)
    metrics: dict[str, float] = made["metrics"]
    return metrics


def test_every_sampler_is_a_word_with_the_defaults_of_its_class() -> None:
    classes = {S.sampler_from_config(word).__class__ for word in WORDS}
    assert classes == {getattr(S, name) for name in S.__all__ if name in S.sampler_names()} - {S.Sampler}
    for word in WORDS:
        for override in (f"head/sampler={word}", f"head.sampler={word}"):
            config = OmegaConf.to_container(compose([override]).head, resolve=True)
            assert isinstance(config, dict)
            assert S.sampler_from_config(config["sampler"]) == S.sampler_from_config(word)
    changed = compose(["head=pfc_01", "head/sampler=mixed", "head.sampler.share=0.2"]).head
    assert changed.sample_rate == 0.1
    assert S.sampler_from_config(OmegaConf.to_container(changed.sampler)) == S.Mixed(share=0.2)  # type: ignore[arg-type]


@pytest.mark.parametrize("word", WORDS)
def test_every_sampler_trains_and_comes_back_from_its_checkpoint(word: str, tmp_path: Path) -> None:
    metrics = run(tmp_path, "head.sample_rate=0.6", f"head/sampler={word}")
    assert metrics["train/loss"] > 0
    (path,) = (tmp_path / "checkpoints").glob("epoch*.ckpt")
    head = PartialFCModule.load_from_checkpoint(path).head
    assert head.sampler == S.sampler_from_config(word)
    if word == "frequency":
        assert head.sampled_count.tolist() == [8] * 40  # type: ignore[union-attr,operator]


def test_head_options_of_the_config(tmp_path: Path) -> None:
    words = ("head.dtype=bfloat16", "head.gradient_filter=1e-4", f"head.row_folder={tmp_path / 'rows'}")
    run(tmp_path / "run", "head.sample_rate=0.5", "head.rows_on=host", "optimizer.missed_steps=decay", *words)
    assert list((tmp_path / "rows").rglob("weight.rows"))
    (path,) = (tmp_path / "run" / "checkpoints").glob("epoch*.ckpt")
    assert torch.load(path, weights_only=True)["state_dict"]["head.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_lars(rate: float, tmp_path: Path) -> None:
    metrics = run(tmp_path, "optimizer=lars", "callbacks=none", f"head.sample_rate={rate}")
    assert metrics["train/loss"] > 0


def test_average_of_weights(tmp_path: Path) -> None:
    """What is saved is the average; what was trained is there too."""
    run(tmp_path, "callbacks=ema", "callbacks.ema.decay=0.9", "head.sample_rate=0.5", "head/sampler=mixed")
    (path,) = (tmp_path / "checkpoints").glob("epoch*.ckpt")
    saved = torch.load(path, weights_only=True)
    average, current = saved["state_dict"], saved["current_model_state"]
    assert average.keys() == current.keys()
    assert not torch.equal(average["head.weight"], current["head.weight"])
    assert not any(torch.equal(v, current[k]) for k, v in average.items() if k.endswith("weight") and v.dim() > 1)
