"""A word names one class: a user's own class never takes the place of another without a word."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import lightning_pfc.losses as L
from lightning_pfc import PartialFCModule
from lightning_pfc.heads.sampling import Sampler, Uniform, sampler_from_config, sampler_names
from lightning_pfc.losses.auxiliary import AuxiliaryLoss, Center, auxiliary_loss_from_config
from lightning_pfc.losses.batch_info import BatchInfo
from lightning_pfc.registry import Configurable

BASES: list[Any] = [
    (L.loss_from_config, L.CosFace, L.ArcFace, "arcface"),
    (L.loss_from_config, L.ArcFace, L.ArcFace, "ArcFace"),
    (auxiliary_loss_from_config, AuxiliaryLoss, Center, "center"),
    (sampler_from_config, Sampler, Uniform, "uniform"),
]


def define(name: str, base: type[Configurable], module: str, **content: Any) -> Any:
    return type(name, (base,), {"__module__": module, **content})


@pytest.fixture(autouse=True)
def forgets_what_was_defined() -> Iterator[None]:
    """Classes of one test stay registered for the others as long as something knows them: these are known to nobody."""
    yield
    gc.collect()
    assert type(L.loss_from_config("arcface")) is L.ArcFace


@pytest.mark.parametrize(("made", "base", "ours", "word"), BASES)
def test_a_class_of_ones_own_with_a_name_of_ours_is_refused_where_the_word_is_used(
    made: Any, base: type[Configurable], ours: type[Configurable], word: str
) -> None:
    theirs = define(ours.__name__, base, "my_project.parts")
    places = f"{ours.__module__}.{ours.__name__} and my_project.parts.{ours.__name__}"
    for config in (word, {"name": word}, ours().to_config()):
        with pytest.raises(ValueError, match=places):
            made(config)
    assert type(made(ours())) is ours  # an object says what it is
    assert type(made(theirs())) is theirs
    assert ours.__name__ in {*L.loss_names(), *sampler_names(), "Center"}


def test_two_names_that_are_one_word() -> None:
    kept = define("Arc_Face", L.CosFace, "my_project.parts")
    with pytest.raises(ValueError, match=r"arcface.ArcFace and my_project.parts.Arc_Face"):
        L.loss_from_config("arcface")
    del kept


def test_the_word_within_another_loss_and_in_a_checkpoint(tmp_path: Path) -> None:
    module = PartialFCModule(num_classes=8, backbone="glyphnet", loss=L.ArcFace())
    kept = define("ArcFace", L.CosFace, "my_project.parts")
    for make in (lambda: L.MarginWarmup(loss="arcface"), lambda: PartialFCModule(**module.hparams)):
        with pytest.raises(ValueError, match=r"my_project.parts.ArcFace"):
            make()
    del kept


def test_what_is_defined_again_replaces_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook's cell that is run again, also with another base; a module loaded again; a script's two names."""
    for base, margin in ((L.ArcFace, 0.5), (L.CosFace, 0.4), (L.ArcFace, 0.5)):
        cell = define("OfTheCell", base, "__main__")
        assert type(L.loss_from_config("of_the_cell")) is cell
        assert L.loss_from_config("of_the_cell").margin == margin  # type: ignore[attr-defined]
    text = "from lightning_pfc.losses import CosFace\nclass OfTheFile(CosFace):\n    made = {}\n"
    (tmp_path / "of_the_file.py").write_text(text.format(1))
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("of_the_file")
    (tmp_path / "of_the_file.py").write_text(text.format("2 + 0"))
    module = importlib.reload(module)
    assert L.loss_from_config("ofthefile").made == 2  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "under_another_name", module)
    again = define("OfTheFile", L.CosFace, "under_another_name")
    assert type(L.loss_from_config("ofthefile")) is again


def test_a_subclass_of_a_loss_warms_up_from_where_its_margin_does_nothing() -> None:
    """SphereFace's margin is a factor: nothing at 1. What it means went by the name of the class."""
    kinds = [L.SphereFace, define("OfMyOwn", L.SphereFace, "my_project.parts")]
    cosine = torch.tensor([0.3, -0.2])
    batch = BatchInfo.__new__(BatchInfo)
    for name, value in {"step": torch.tensor(0), "norms": torch.ones(2)}.items():
        object.__setattr__(batch, name, value)
    for kind in kinds:
        warm = L.MarginWarmup(loss=kind(margin=1.7), steps=10)
        assert torch.allclose(warm.target_logits(cosine, batch, {}), 64.0 * cosine, atol=1e-4), kind


@pytest.mark.parametrize(
    "given",
    [
        "lightning_pfc.losses.ArcFace",
        "lightning_pfc.losses.arcface.ArcFace",
        {"class_path": "lightning_pfc.losses.ArcFace"},
        {"class_path": "ArcFace", "init_args": {}},
        {"class_path": "lightning_pfc.losses.ArcFace", "init_args": {"margin": 0.5}},
    ],
)
def test_a_class_is_named_as_jsonargparse_names_it(given: Any) -> None:
    """Its path, and ``class_path`` with ``init_args``, which is how LightningCLI and its files write a class."""
    assert L.loss_from_config(given) == L.ArcFace()


def test_of_two_with_one_name_the_path_tells_which(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = define("ArcFace", L.CosFace, "my_project.parts")
    monkeypatch.setitem(sys.modules, "my_project", SimpleNamespace(ArcFace=theirs))
    for path in ("my_project.parts.ArcFace", "my_project.ArcFace"):
        assert type(L.loss_from_config({"class_path": path})) is theirs
    assert type(L.loss_from_config("lightning_pfc.losses.ArcFace")) is L.ArcFace


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"margin": 0.3}, r"loss {'margin': 0.3} has no name: .*--model.loss.name=ArcFace"),
        ("", "loss '' has no name"),
        ("theirs.losses.ArcFace", r"loss 'theirs.losses.ArcFace' does not exist, or was not imported. There are: "),
        ("os.system", "loss 'os.system' does not exist"),
        ({"class_path": "torch.nn.ArcFace"}, "'torch.nn.ArcFace' does not exist"),
    ],
)
def test_a_mapping_without_a_name_and_paths_to_nowhere(given: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        L.loss_from_config(given)
