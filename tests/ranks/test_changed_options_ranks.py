"""Options that are set on one rank and not on another: refused on all, by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_pfc import PartialFC
from lightning_pfc.losses import ArcFace
from lightning_pfc.losses.auxiliary import AuxiliaryLoss
from tests.ranks import RankPool


def said(rank: int, world_size: int, name: str, value: Any, others: dict[str, Any] | None = None) -> str:
    head = PartialFC(embedding_dim=4, num_classes=50, loss="cosface", sample_rate=0.2)
    head.to("cpu")
    x, y = torch.ones(2, 4), torch.tensor([0, 1])
    head(x, y)
    if rank == 1:
        for each, new in {name: value, **(others or {})}.items():
            setattr(head, each, new)
    try:
        head(x, y)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("sample_rate", 0.4, "head.sample_rate is 0.2 on rank 0, 0.4 on rank 1; it must be the same on every rank"),
        ("sampler", "positives_only", "head.sampler is Uniform(correction=False) on rank 0, PositivesOnly("),
        ("loss", ArcFace(), "head.loss is CosFace(scale=64.0, "),
        ("seed", 1, "head.seed is 0 on rank 0, 1 on rank 1"),
        ("auxiliary_losses", ["supcon"], "head.auxiliary_losses is [] on rank 0, [SupCon("),
        ("check_finite", False, "head.check_finite is True on rank 0, False on rank 1"),
    ],
)
def test_ranks_that_differ(ranks: RankPool, name: str, value: Any, words: str) -> None:
    for text in ranks.run(2, said, name, value):
        assert text.startswith(words)
        assert text.count("head.") == 1


def test_several_that_differ(ranks: RankPool) -> None:
    for text in ranks.run(3, said, "sample_rate", 0.4, {"seed": 3}):
        assert "head.sample_rate is 0.2 on rank 0, 2, 0.4 on rank 1; head.seed is 0 on rank 0, 2, 3 on rank 1;" in text


@dataclass(frozen=True, kw_only=True)
class Own(AuxiliaryLoss):
    """It holds what has an address in its repr, another one in each process."""

    distance: Any = field(default_factory=lambda: lambda x: x.square().mean())
    kept: Any = field(default_factory=object)
    numbers: tuple[float, ...] = (1.0, 2.0)

    def __call__(self, embeddings: Tensor, labels: Tensor, memory: Any = None) -> Tensor:
        found: Tensor = self.distance(embeddings)
        return found


def trained(rank: int, world_size: int, numbers: tuple[float, ...]) -> tuple[str, str]:
    held = [
        Own(numbers=numbers if rank else (1.0, 2.0)) for _ in range(1 + rank)
    ]  # forked ranks have the same addresses
    own = held[-1]
    head = PartialFC(embedding_dim=4, num_classes=50, loss="cosface", sample_rate=0.2, auxiliary_losses=[own])
    try:
        head(torch.ones(2, 4), torch.tensor([0, 1])).backward()
        text = ""
    except ValueError as error:
        text = str(error)
    return text, repr(own)


def test_an_own_loss_with_a_function_is_the_same_on_every_rank(ranks: RankPool) -> None:
    (first, one), (second, other) = ranks.run(2, trained, (1.0, 2.0))
    assert first == second == ""
    assert " at 0x" in one
    assert one != other, "or nothing is shown by it"
    for text, _ in ranks.run(2, trained, (1.0, 3.0)):
        assert "numbers=[1.0, 2.0])] on rank 0, [Own(weight=1.0, distance=<function>, kept=<object>, numbers=" in text
