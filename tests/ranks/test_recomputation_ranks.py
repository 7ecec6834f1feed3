"""``torch.utils.checkpoint`` around a sharded head: the same numbers as without, on every rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_pfc import PartialFC
from lightning_pfc.distributed import Comm
from lightning_pfc.losses import AdaFace, CosFace
from tests.ranks import RankPool

DIM, CLASSES = 5, 40


def batch(rank: int, number: int) -> tuple[Tensor, Tensor]:
    """Rank 0 brings the same rows each time, so that only all ranks together tell the batches apart."""
    generator = torch.Generator().manual_seed(0 if rank == 0 else 100 * rank + number)
    size = 3 + rank
    return torch.randn(size, DIM, generator=generator), torch.randint(0, CLASSES, (size,), generator=generator)


def train(rank: int, world_size: int, group_size: int | None, way: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    net = nn.Linear(DIM, DIM)
    comm = Comm.from_group(head_group_size=group_size)
    losses = []
    found: dict[str, Any] = {}
    for name, loss in {"cosface": CosFace(scale=8.0), "adaface": AdaFace(scale=8.0, momentum=0.5, h=1.0)}.items():
        head = PartialFC(
            embedding_dim=DIM, num_classes=CLASSES, loss=loss, sample_rate=0.3, comm=comm, seed=1, init_std=1.0
        )

        def forward(number: int, head: PartialFC = head) -> Tensor:
            x, labels = batch(rank, number)
            if way == "plain":
                return head(net(x), labels)
            if way == "head":
                return checkpoint(head, net(x), labels, use_reentrant=False)
            return checkpoint(lambda x: head(net(x), labels), x.requires_grad_(), use_reentrant=True)

        for number in range(3):
            first, thrown_away = forward(2 * number), forward(2 * number + 1)
            first.backward()
            losses += [first.detach(), thrown_away.detach()]
        found |= {f"{name}.{key}": value for key, value in head.state_dict().items()}
        found[f"{name}.grad"] = head.weight.grad
    return found | {"loss": torch.stack(losses), "net": net.weight.grad}


@pytest.mark.parametrize(("world_size", "group_size"), [(2, None), (3, None), (4, 2)])
def test_the_same_as_without(ranks: RankPool, world_size: int, group_size: int | None) -> None:
    want = ranks.run(world_size, train, group_size, "plain")
    for way in ("head", "everything"):
        for expected, got in zip(want, ranks.run(world_size, train, group_size, way), strict=True):
            for name, value in expected.items():
                torch.testing.assert_close(
                    got[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
                )
