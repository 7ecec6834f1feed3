"""Bytes on the wire, as the collectives carry them and as the kernel counts them on the sockets, against the plan."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lightning_pfc import PartialFC
from lightning_pfc.distributed import Comm
from lightning_pfc.losses import ArcFace
from lightning_pfc.optim import SparseSGD
from lightning_pfc.planning import Setup, head_traffic
from lightning_pfc.planning.counting import CollectiveLog, bytes_sent
from lightning_pfc.planning.traffic import data_parallel_traffic, total
from tests.ranks import RankPool

BATCH, DIM = 24, 64
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="bytes of sockets are counted through /proc")


def settle() -> int:
    """Bytes sent so far, once what was on its way has been counted on all ranks."""
    dist.barrier()
    time.sleep(0.05)
    return bytes_sent()


def head_step(rank: int, world_size: int, classes: int, rate: float, group_size: int | None, scale: float) -> Any:
    comm = Comm.from_group(head_group_size=group_size)
    head = PartialFC(embedding_dim=DIM, num_classes=classes, loss=ArcFace(scale=scale), sample_rate=rate, comm=comm)
    optimizer = SparseSGD(head.parameters(), lr=0.1, momentum=0.9)
    drawn = []
    for _ in range(2):  # connections are made in the first
        x = torch.randn(BATCH, DIM, requires_grad=True)
        labels = torch.randint(0, classes, (BATCH,))
        before = settle()
        with CollectiveLog() as log:
            head(x, labels).backward()
            drawn = [] if head.weight.grad is None else [head.weight.grad._values().shape[0]]
            optimizer.step()
            optimizer.zero_grad()
        after = settle()
    return {
        "calls": [tuple(call) for call in log.calls],
        "payload": log.sent,
        "sockets": after - before,
        "rows": drawn[0],
    }


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_a_head_sends_what_is_planned_whatever_the_number_of_classes(
    ranks: RankPool, world_size: int, rate: float
) -> None:
    planned = total(head_traffic(Setup(classes=400, dim=DIM, ranks=world_size, batch=BATCH, rate=rate, device="cpu")))
    for classes in (400, 40_000):
        for result in ranks.run(world_size, head_step, classes, rate, None, 64.0):
            assert result["payload"] == planned


@LINUX
@pytest.mark.parametrize("world_size", [2, 4])
def test_the_sockets_agree(ranks: RankPool, world_size: int) -> None:
    """gloo has no reduce-scatter of its own: it sends that twice, as an all-reduce. All else is as good as a ring."""
    setup = Setup(classes=4000, dim=DIM, ranks=world_size, batch=BATCH, device="cpu")
    messages = {message.name: message.bytes for message in head_traffic(setup)}
    on_gloo = sum(messages.values()) + messages["gradient of the embeddings"]
    results = ranks.run(world_size, head_step, 4000, 1.0, None, 64.0)
    sent = sum(result["sockets"] for result in results) / world_size
    assert on_gloo <= sent < 1.05 * on_gloo + 8192, "beside the payload there are only gloo's own small headers"


def test_logits_without_a_bound_cost_one_more_all_reduce(ranks: RankPool) -> None:
    setup = Setup(classes=400, dim=DIM, ranks=2, batch=BATCH, device="cpu")
    for result in ranks.run(2, head_step, 400, 1.0, None, 100.0):
        assert result["payload"] == total(head_traffic(setup, bounded=False))


def test_replicated_shards_send_what_is_planned(ranks: RankPool) -> None:
    setup = Setup(classes=400, dim=DIM, ranks=4, group_size=2, batch=BATCH, device="cpu")
    for result in ranks.run(4, head_step, 400, 1.0, 2, 64.0):
        assert result["rows"] == setup.sampled_rows
        assert result["payload"] == total(head_traffic(setup))


def data_parallel_step(rank: int, world_size: int, classes: int) -> Any:
    layer = torch.nn.Linear(DIM, classes, bias=False)
    model = torch.nn.parallel.DistributedDataParallel(layer)
    for _ in range(2):
        before = settle()
        with CollectiveLog() as log:
            model(torch.randn(BATCH, DIM)).logsumexp(1).sum().backward()
        after = settle()
    return {"payload": log.sent, "sockets": after - before}


@pytest.mark.parametrize("world_size", [2, 4])
def test_data_parallel_centers_send_every_class(ranks: RankPool, world_size: int) -> None:
    for classes in (400, 4000):
        planned = data_parallel_traffic(Setup(classes=classes, dim=DIM, ranks=world_size, device="cpu"))
        for result in ranks.run(world_size, data_parallel_step, classes):
            assert result["payload"] == pytest.approx(planned, abs=64)  # DDP tells which gradients were used
            if sys.platform.startswith("linux"):
                assert planned <= result["sockets"] < 1.05 * planned + 8192
