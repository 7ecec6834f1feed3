"""Every loss is one word on the command line, and every config names all of its loss's arguments at their defaults."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lightning_pfc.config import compose
from lightning_pfc.config_words import config_dir
from lightning_pfc.losses import Loss, MarginWarmup, loss_from_config, loss_names

WORDS = sorted(path.stem for path in (config_dir() / "loss").glob("*.yaml"))


def test_every_loss_has_a_config() -> None:
    named = {str(OmegaConf.load(config_dir() / "loss" / f"{word}.yaml").name) for word in WORDS}
    ours = {cls.__name__ for cls in _ours()}
    assert named == ours <= set(loss_names())


def _ours() -> list[type[Loss]]:
    found, pending = [], list(Loss.__subclasses__())
    while pending:
        cls = pending.pop()
        pending += cls.__subclasses__()
        if cls.__module__.startswith("lightning_pfc."):
            found.append(cls)
    return found


@pytest.mark.parametrize("word", WORDS)
def test_config_holds_the_defaults(word: str) -> None:
    config = compose([f"loss={word}"]).loss
    loss = loss_from_config(config)
    if isinstance(loss, MarginWarmup):
        assert loss.inner.to_config() == {"name": "ArcFace"}
    else:
        assert loss.to_config() == {"name": config.name}
    arguments = {f.name for f in fields(loss) if f.init}
    # Softmax has no cosine to scale or filter, and the binary losses nothing to smooth: left out on purpose
    missing = arguments - set(config) - {"scale", "label_smoothing", "interclass_filter"}
    assert not missing


def test_warmup_of_another_loss() -> None:
    loss = loss_from_config(compose(["loss=warmup", "loss@loss.loss=cosface", "loss.steps=5"]).loss)
    assert isinstance(loss, MarginWarmup)
    assert (type(loss.inner).__name__, loss.steps) == ("CosFace", 5)


def test_the_table_of_losses_names_them_all() -> None:
    page = Path(__file__).parents[2] / "docs" / "losses.md"
    text = page.read_text(encoding="utf-8")
    for word in WORDS:
        assert f"`loss={word}`" in text, word
