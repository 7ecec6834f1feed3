"""A head that another project wrote on some ranks goes on at others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lightning_pfc import PartialFC
from lightning_pfc.commands.ckpt import main
from tests.ranks import RankPool
from tests.unit.test_interchange import CLASSES, DIM, second_generation


def first_loss(rank: int, world_size: int, path: str) -> float:
    head = PartialFC(embedding_dim=DIM, num_classes=CLASSES, loss="CosFace", init_std=1.0)
    head.to("cpu")
    head.load_state_dict({"weight": load_file(path)["head.weight"]}, strict=False)
    generator = torch.Generator().manual_seed(1)
    x, labels = torch.randn(12, DIM, generator=generator), torch.randint(0, CLASSES, (12,), generator=generator)
    return float(head(x[rank::world_size], labels[rank::world_size]).detach())


def test_a_head_of_8_ranks_goes_on_at_2(ranks: RankPool, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    folder = str(second_generation(tmp_path / "run", 8))
    assert main(["import", "--from", "insightface", folder, str(out)]) == 0
    [one] = ranks.run(1, first_loss, str(out))
    assert ranks.run(2, first_loss, str(out)) == pytest.approx([one, one], rel=1e-5)
