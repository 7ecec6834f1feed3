"""Losses that keep, learn or remember something, under a Trainer: trained on 2 ranks, gone on with on 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_pfc import PartialFC
from lightning_pfc import losses as L
from tests.ranks import RankPool
from tests.trainer.world import CLASSES, DIM, TheirModule, make_loader, make_trainer

LOSSES: dict[str, tuple[L.Loss, list[str]]] = {
    "averages": (L.AdaFace(scale=8.0), []),
    "learned number": (L.SphereFace2(scale=8.0, weight=1.0), []),
    "both after the sums": (L.AdaCos(), []),
    "memory of classes": (L.VPL(scale=8.0, start=1), ["center", "supcon"]),
    "plain": (L.CosFace(scale=8.0), []),
    "sampler with an index": (L.CosFace(scale=8.0), []),
    "several centers": (L.SubCenterArcFace(scale=8.0, centers=2), ["triplet"]),
}
SAMPLERS = {"sampler with an index": {"name": "mixed", "refresh": 2}}


class Module(TheirModule):
    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(momentum=0.9)

    def make_head(self) -> PartialFC:
        loss, additions = LOSSES[self.name]
        return PartialFC(
            embedding_dim=DIM, num_classes=CLASSES, loss=loss, init_std=0.5, sample_rate=0.7,
            auxiliary_losses=additions, sampler=SAMPLERS.get(self.name, "uniform"),
        )  # fmt: skip


def sizes(world_size: int) -> tuple[int, ...]:
    return {1: (8,), 2: (5, 3), 3: (3, 1, 4)}[world_size]


def fit(rank: int, world_size: int, name: str, epochs: int, load: str | None, save: str | None) -> Any:
    module = Module(name)
    trainer = make_trainer(rank, world_size, max_epochs=epochs)
    trainer.fit(module, make_loader(rank, world_size, steps=3, sizes=sizes(world_size)), ckpt_path=load)
    if save is not None:
        trainer.save_checkpoint(save)
    return module.losses, {key: value.clone() for key, value in module.state_dict().items()}


def whole(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Shards joined; what must be alike on all ranks is."""
    found = {}
    for key, first in parts[0].items():
        if key.startswith(("head.weight", "head.memory", "head.sampled")):
            found[key] = torch.cat([part[key] for part in parts])
        else:
            assert all(torch.equal(first, part[key]) for part in parts), f"{key} differs between ranks"
            found[key] = first
    return found


@pytest.mark.parametrize("name", LOSSES)
def test_two_ranks_then_three_are_as_one_process(ranks: RankPool, name: str, tmp_path: Path) -> None:
    [(expected_losses, expected)] = ranks.run(1, fit, name, 2, None, None)
    saved = str(tmp_path / "first.ckpt")
    first = ranks.run(2, fit, name, 1, None, saved)
    second = ranks.run(3, fit, name, 2, saved, None)
    for losses, _ in first:
        torch.testing.assert_close(losses, expected_losses[:3], rtol=1e-5, atol=1e-6)
    for losses, _ in second:
        torch.testing.assert_close(losses, expected_losses[3:], rtol=1e-5, atol=1e-6)
    state = whole([part for _, part in second])
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")
    start = Module(name).head.state_dict()
    kept = [key for key in start if key.startswith(("loss_", "memory_", "sampler_", "sampled_"))]
    assert all(not torch.equal(state[f"head.{key}"], start[key].to("cpu")) for key in kept if not start[key].is_meta)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_goes_on_with_another_sampler(ranks: RankPool, world_size: int, tmp_path: Path) -> None:
    """What one sampler kept is left out, and what another keeps begins anew."""
    for before, after in (("plain", "sampler with an index"), ("sampler with an index", "plain")):
        saved = str(tmp_path / f"{before}.ckpt")
        ranks.run(world_size, fit, before, 1, None, saved)
        for losses, _ in ranks.run(world_size, fit, after, 2, saved, None):
            assert len(losses) == 3
