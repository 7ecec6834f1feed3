"""Options of a head that are set later: it does then what a head does that was made with them, or refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_pfc import PartialFC
from lightning_pfc.heads.sampling import Frequency, PositivesOnly, RateSchedule
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
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(name: str, value: Any, said: str) -> None:
    head = made()
    before = getattr(head, name)
    with pytest.raises((ValueError, TypeError), match=said):
        setattr(head, name, value)
    assert getattr(head, name) == before
    assert torch.equal(grown(head), grown(made()))
