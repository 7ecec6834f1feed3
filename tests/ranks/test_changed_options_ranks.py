"""Options that are set on one rank and not on another: refused on all, by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_pfc import PartialFC
from lightning_pfc.losses import ArcFace
from tests.ranks import RankPool


def said(rank: int, world_size: int, name: str, value: Any) -> str:
    head = PartialFC(embedding_dim=4, num_classes=50, loss="cosface", sample_rate=0.2)
    head.to("cpu")
    x, y = torch.ones(2, 4), torch.tensor([0, 1])
    head(x, y)
    if rank == 1:
        setattr(head, name, value)
    try:
        head(x, y)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sample_rate", 0.4),
        ("sampler", "positives_only"),
        ("loss", ArcFace()),
        ("seed", 1),
        ("auxiliary_losses", ["supcon"]),
        ("check_finite", False),
    ],
)
def test_ranks_that_differ(ranks: RankPool, name: str, value: Any) -> None:
    for text in ranks.run(2, said, name, value):
        assert "head.sample_rate, head.sampler or head.loss is not the same on every rank" in text
        assert f"head.{name}" in text
