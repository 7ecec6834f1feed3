"""Diagnostics of a head that is split over ranks are those of the whole head."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_pfc.distributed.comm import Comm
from lightning_pfc.metrics import CenterDiagnostics, SampleDiagnostics, nearest_centers, worst_collisions
from tests.ranks import RankPool
from tests.unit.test_metrics_centers import batch, make_head


def diagnose(rank: int, world_size: int, group_size: int | None, several: int) -> dict[str, Any]:
    comm = Comm.from_group(head_group_size=group_size) if world_size > 1 else Comm.single()
    head = make_head(several, comm=comm)
    found = nearest_centers(head, chunk=7)
    centers, samples = CenterDiagnostics(collision=0.95, chunk=7), SampleDiagnostics(noise_cosine=0.6)
    centers.update(head)
    embeddings, labels = batch(several)
    cuts = [0, 3, 20, 31, 50] if world_size == 4 else torch.linspace(0, 50, world_size + 1).long().tolist()
    samples.update(head, embeddings[cuts[rank] : cuts[rank + 1]], labels[cuts[rank] : cuts[rank + 1]])
    numbers = {f"c/{k}": float(v) for k, v in centers.compute().items()}
    numbers |= {f"s/{k}": float(v) for k, v in samples.compute().items()}
    return {
        "start": head.class_range.start,
        "cosine": found.cosine,
        "neighbour": found.neighbour,
        "numbers": numbers,
        "worst": worst_collisions(head, found, 6),
    }


@pytest.mark.parametrize(("world_size", "group_size", "several"), [(2, None, 1), (3, None, 1), (4, 2, 1), (2, None, 3)])
def test_diagnostics_are_those_of_one_rank(
    ranks: RankPool, world_size: int, group_size: int | None, several: int
) -> None:
    alone = diagnose(0, 1, None, several)
    for found in ranks.run(world_size, diagnose, group_size, several):
        own = slice(found["start"], found["start"] + len(found["cosine"]))
        torch.testing.assert_close(found["cosine"], alone["cosine"][own], atol=1e-6, rtol=0)
        assert torch.equal(found["neighbour"], alone["neighbour"][own])
        assert found["numbers"] == pytest.approx(alone["numbers"], abs=1e-6)
        assert [pair[:2] for pair in found["worst"]] == [pair[:2] for pair in alone["worst"]]
