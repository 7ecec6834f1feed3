"""Heads in the hands of code that takes every parameter for a copy of rank 0's: noticed on every rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer, ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel as DDP

from lightning_pfc import PartialFC
from lightning_pfc.distributed.stated_rows import plain_rows
from tests.ranks import RankPool, join_group

CLASSES, DIM, BATCH = 12, 6, 8


class Model(nn.Module):
    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Linear(5, DIM)
        self.head = PartialFC(embedding_dim=DIM, num_classes=classes, loss="CosFace", init_std=1.0)
        self.head.to("cpu")

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.head(self.backbone(x), labels)  # type: ignore[no-any-return]


def batch(rank: int, world_size: int, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x, labels = torch.randn(BATCH, 5, generator=generator), torch.randint(0, CLASSES, (BATCH,), generator=generator)
    return x[rank::world_size], labels[rank::world_size]


def train(rank: int, world_size: int, call: Callable[..., Tensor], optimizer: torch.optim.Optimizer) -> None:
    for step in range(3):
        optimizer.zero_grad()
        call(*batch(rank, world_size, step)).backward()
        optimizer.step()


def in_ddp(rank: int, world_size: int, model: Model) -> None:
    DDP(model)


def in_ddp_deep_down(rank: int, world_size: int, model: Model) -> None:
    DDP(nn.ModuleDict({"all": nn.Sequential(nn.Identity(), model)}))


def head_alone_in_ddp(rank: int, world_size: int, model: Model) -> None:
    DDP(model.head)


def in_ddp_without_sync(rank: int, world_size: int, model: Model) -> None:
    DDP(model, init_sync=False, broadcast_buffers=False)


def in_fabric(rank: int, world_size: int, model: Model) -> None:
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DDPStrategy

    from tests.trainer.world import PoolEnvironment

    strategy = DDPStrategy(cluster_environment=PoolEnvironment(rank, world_size))
    fabric = Fabric(accelerator="cpu", devices=world_size, strategy=strategy)
    fabric.launch()
    fabric.setup(model)


def sent_by_hand(rank: int, world_size: int, model: Model) -> None:
    for param in model.parameters():
        dist.broadcast(param.data, 0)
    train(rank, world_size, model, torch.optim.SGD(model.parameters(), lr=0.1))


def averaged_by_hand(rank: int, world_size: int, model: Model) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        model(*batch(rank, world_size, step)).backward()
        for param in model.parameters():
            assert param.grad is not None
            dist.all_reduce(param.grad)
        optimizer.step()


def averaged_by_an_optimizer(rank: int, world_size: int, model: Model) -> None:
    averager = PeriodicModelAverager(period=1)
    train(rank, world_size, model, PostLocalSGDOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), averager))


def in_zero(rank: int, world_size: int, model: Model) -> None:
    train(rank, world_size, model, ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1))


def seeded_alike(rank: int, world_size: int, model: Model) -> None:
    torch.manual_seed(3)
    nn.init.normal_(model.head.weight)
    train(rank, world_size, model, torch.optim.SGD(model.parameters(), lr=0.1))


def as_another_tensor(rank: int, world_size: int, model: Model) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world_size,))
    model.head.weight = nn.Parameter(distribute_tensor(model.head.weight.detach(), mesh, [Shard(0)]))
    model(*batch(rank, world_size, 0))


TAKEN = [in_ddp, in_ddp_deep_down, head_alone_in_ddp, in_ddp_without_sync, in_fabric]
NOTICED = [sent_by_hand, averaged_by_hand, averaged_by_an_optimizer, in_zero, seeded_alike, as_another_tensor]


def attempt(rank: int, world_size: int, how: Callable[..., None]) -> tuple[str, bool]:
    join_group()
    model = Model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    text = ""
    try:
        how(rank, world_size, model)
    except (RuntimeError, ValueError) as error:
        text = str(error)
    after = model.state_dict()
    return text, all(type(plain_rows(after[key])) is Tensor and torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("how", TAKEN, ids=lambda how: how.__name__)
def test_a_wrapper_is_refused_before_anything_is_overwritten(ranks: RankPool, how: Callable[..., None]) -> None:
    for text, intact in ranks.run(2, attempt, how, group="later"):
        assert "DistributedDataParallel takes" in text
        assert 'strategy="pfc"' in text
        assert "DistributedDataParallel(backbone)" in text
        assert intact


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("how", NOTICED, ids=lambda how: how.__name__)
def test_what_takes_rows_otherwise_is_noticed_on_every_rank(
    ranks: RankPool, how: Callable[..., None], world_size: int
) -> None:
    for text, _ in ranks.run(world_size, attempt, how, group="later"):
        assert "overwritten" in text
        assert "PartialFC head" in text


def script(rank: int, world_size: int, marked: bool) -> Any:
    """As the docs have it: the backbone alone in DDP, or a whole model that leaves the head's tensors out."""
    if world_size > 1:
        join_group()
    model = Model()
    call: Callable[..., Tensor] = model
    if world_size > 1 and marked:
        names = [f"head.{name}" for name in model.head.sharded_tensors()]
        DDP._set_params_and_buffers_to_ignore_for_model(model, names)  # type: ignore[no-untyped-call]
        call = DDP(model)
    elif world_size > 1:
        wrapped = DDP(model.backbone)

        def call(x: Tensor, labels: Tensor) -> Tensor:
            return model.head(wrapped(x), labels)  # type: ignore[no-any-return]

    train(rank, world_size, call, torch.optim.SGD(model.parameters(), lr=0.01))
    return model.backbone.weight.detach(), model.head.weight.detach()


@pytest.mark.parametrize("marked", [False, True])
def test_a_script_trains_as_one_process_does(ranks: RankPool, marked: bool) -> None:
    [(backbone, centers)] = ranks.run(1, script, marked)
    several = ranks.run(2, script, marked, group="later")
    for own, _ in several:
        torch.testing.assert_close(own, backbone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.cat([rows for _, rows in several]), centers, rtol=1e-5, atol=1e-6)
