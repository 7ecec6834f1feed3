"""Options of a head that are set later: it does then what a head does that was made with them, or refuses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_pfc import PartialFC
from lightning_pfc.heads.sampling import Frequency, PositivesOnly, RateSchedule, Uniform
from lightning_pfc.ignored import IgnoredOptionWarning
from lightning_pfc.losses import ArcFace, SubCenterArcFace

MADE: dict[str, Any] = {"embedding_dim": 4, "num_classes": 50, "loss": "cosface", "sample_rate": 0.2}


def made(**options: Any) -> PartialFC:
    head = PartialFC(**{**MADE, **options})
    head.to("cpu")
    return head


def grown(head: PartialFC) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        x, y = torch.randn(8, 4, generator=generator), torch.randint(0, 50, (8,), generator=generator)
        head(x, y).backward()
    found: Tensor = head.weight.grad.to_dense()
    return found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sample_rate", 1.0),
        ("sample_rate", 0.6),
        ("sampler", "positives_only"),
        ("sampler", PositivesOnly()),
        ("sampler", RateSchedule(start=0.5)),
        ("loss", "arcface"),
        ("loss", {"name": "cosface", "margin": 0.1}),
        ("loss", ArcFace(margin=0.3)),
        ("chunk_size", 7),
        ("auxiliary_losses", ["supcon"]),
        ("auxiliary_losses", [{"name": "triplet", "weight": 2.0}]),
    ],
)
def test_a_change_is_followed(name: str, value: Any) -> None:
    head = copy.deepcopy(made())
    setattr(head, name, value)
    assert torch.equal(grown(head), grown(made(**{name: value})))
    assert not torch.equal(grown(head), grown(made())) or name == "chunk_size"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("sample_rate", 1.5, r"sample_rate=1.5 must lie in \[0, 1\]"),
        ("sample_rate", float("nan"), "sample_rate=nan must lie in"),
        ("sample_rate", True, "head.sample_rate=True must be a number"),
        ("sample_rate", "0.1", "head.sample_rate='0.1' must be a number"),
        ("sampler", Frequency(), "keeps sampled_count, which this head was not made with"),
        ("sampler", "mixed", "keeps sampled_cell, sampler_built, sampler_pivots"),
        ("sampler", "nonsense", "nonsense"),
        ("loss", "adaface", "keeps loss_mean, loss_std"),
        ("loss", "vpl", "keeps memory_feature, memory_seen"),
        ("loss", SubCenterArcFace(), "has other centers"),
        ("num_classes", 60, "this head was made for 50"),
        ("embedding_dim", 8, "this head was made for 4"),
        ("chunk_size", 0, "chunk_size=0 must be at least 1"),
        ("gradient_filter", -1.0, "gradient_filter=-1.0 must lie in"),
        ("seed", 1.5, "seed=1.5 must be a whole number"),
        ("seed", True, "seed=True must be a whole number"),
        ("check_finite", "no", "head.check_finite='no' must be True or False"),
        ("check_finite", 2, "head.check_finite=2 must be True or False"),
        ("sample_rate", torch.ones(2), "head.sample_rate=.* must be a number"),
        ("auxiliary_losses", "supcon", "head.auxiliary_losses='supcon' must be a list"),
        ("auxiliary_losses", ["nonsense"], "nonsense"),
        ("auxiliary_losses", ["center"], "head.auxiliary_losses=.* keeps memory_center"),
        ("rows_on", "host", "head.rows_on=host: this head was made for device"),
        ("row_folder", "elsewhere", "head.row_folder=elsewhere: this head was made for None"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(name: str, value: Any, said: str) -> None:
    head = made()
    before = getattr(head, name)
    with pytest.raises((ValueError, TypeError), match=said):
        setattr(head, name, value)
    assert getattr(head, name) == before
    assert torch.equal(grown(head), grown(made()))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("sample_rate", True, "sample_rate must be a number"),
        ("sample_rate", "0.1", "sample_rate must be a number"),
        ("gradient_filter", "0", "gradient_filter must be a number"),
        ("seed", True, "seed must be a whole number"),
        ("check_finite", 2, "check_finite must be True or False"),
        ("check_finite", torch.tensor(True), "check_finite must be True or False"),
        ("sample_rate", torch.ones(2), "head.sample_rate=.* must be a number"),
        ("auxiliary_losses", "supcon", r"auxiliary_losses must be a list .*, as in auxiliary_losses=\['supcon'\]"),
    ],
)
def test_a_head_is_not_made_with_what_could_not_be_set(name: str, value: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        made(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("check_finite", 1, True),
        ("check_finite", 0, False),
        ("check_finite", np.False_, False),
        ("sample_rate", torch.tensor(0.5), 0.5),
        ("sample_rate", np.float32(0.5), 0.5),
        ("sample_rate", 1, 1.0),
        ("gradient_filter", np.array(0.25), 0.25),
    ],
)
def test_what_stands_for_a_flag_or_a_number_becomes_one(name: str, value: Any, kept: Any) -> None:
    head = made()
    setattr(head, name, value)
    for found in (getattr(head, name), getattr(made(**{name: value}), name)):
        assert found == kept
        assert type(found) is type(kept)


def test_a_seed_that_is_set_draws_the_negatives_of_its_own() -> None:
    head, other = made(), made(seed=5)
    head.seed = 5
    assert type(head.seed) is int
    with torch.no_grad():
        other.weight.copy_(head.weight)
    assert torch.equal(grown(head), grown(other))
    assert not torch.equal(grown(head), grown(made()))


def test_what_was_made_so_may_be_said_again(tmp_path: Path) -> None:
    head = made(row_folder=tmp_path)
    head.row_folder = str(tmp_path)  # type: ignore[assignment]
    assert head.row_folder == tmp_path
    head.rows_on = "device"
    head.auxiliary_losses = ()


def test_a_memory_is_of_one_loss() -> None:
    head = made(auxiliary_losses=["center"])
    with pytest.raises(ValueError, match="two of the losses remember 'center' of every class"):
        head.auxiliary_losses = ["center", {"name": "center", "weight": 0.1}]  # type: ignore[assignment]
    head.auxiliary_losses = [{"name": "center", "weight": 0.1}]  # type: ignore[assignment]


@pytest.mark.parametrize(("name", "value"), [("sample_rate", 1.0), ("sampler", Uniform(correction=True))])
def test_a_sampler_that_idles_from_now_on_is_told_to_whoever_set_it(name: str, value: Any) -> None:
    head = made(sampler=Uniform(correction=True)) if name == "sample_rate" else made(sample_rate=1.0)
    with pytest.warns(IgnoredOptionWarning, match="sample_rate=1 takes every class in every step") as seen:
        setattr(head, name, value)
    assert seen[0].filename == __file__
    with pytest.warns(IgnoredOptionWarning) as seen:
        made_here = PartialFC(**{**MADE, "sample_rate": 1.0}, sampler=Uniform(correction=True))
    assert seen[0].filename == __file__
    assert made_here.sample_rate == 1.0
