"""Trainers inside the ranks of the pool, and a LightningModule such as somebody else would write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments import ClusterEnvironment
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_pfc import PartialFC
from lightning_pfc.losses import CosFace

CLASSES = 11
DIM = 6
WIDTH = 5


class PoolEnvironment(ClusterEnvironment):
    """Tells Lightning about the rank and the group that the pool has given to this process."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__()
        self._rank, self._world_size = rank, world_size

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return "localhost"

    @property
    def main_port(self) -> int:
        raise RuntimeError("the ranks have met already")

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._world_size

    def set_world_size(self, size: int) -> None:
        assert size == self._world_size

    def global_rank(self) -> int:
        return self._rank

    def set_global_rank(self, rank: int) -> None:
        assert rank == self._rank

    def local_rank(self) -> int:
        return self._rank

    def node_rank(self) -> int:
        return 0


def make_trainer(rank: int, world_size: int, **options: Any) -> L.Trainer:
    """A quiet Trainer for one rank of the pool; ``strategy`` is "pfc" unless said otherwise."""
    defaults: dict[str, Any] = {
        "strategy": "pfc",
        "accelerator": "cpu",
        "devices": world_size,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    plugins = [PoolEnvironment(rank, world_size), *options.pop("plugins", [])]
    return L.Trainer(**{**defaults, **options}, plugins=plugins)


class TheirModule(L.LightningModule):
    """A backbone, a head, a plain optimizer: what a user's own project looks like."""

    def __init__(
        self,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
        lr: float = 0.1,
        sample_rate: float = 1.0,
        late: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.backbone = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, DIM))
        with torch.no_grad():
            for parameter in self.backbone.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        self.optimizer, self.lr, self.sample_rate, self.options = optimizer, lr, sample_rate, options
        self.head: PartialFC | None = None if late else self.make_head()
        self.losses: list[float] = []

    def make_head(self) -> PartialFC:
        return PartialFC(
            embedding_dim=DIM, num_classes=CLASSES, loss=CosFace(scale=8.0), sample_rate=self.sample_rate, init_std=0.5
        )

    def configure_model(self) -> None:
        if self.head is None:
            self.head = self.make_head()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        assert self.head is not None
        return self.head(self.backbone(batch[0]), batch[1])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        loss = self.loss(batch)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters(), lr=self.lr, **self.options)


class Steps(Dataset[tuple[Tensor, Tensor]]):
    """Whole batches: item i is what one rank sees in step i."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.batches[index]


def make_loader(rank: int, world_size: int, steps: int = 6, sizes: tuple[int, ...] = (5, 3)) -> DataLoader[Any]:
    """This rank's part of ``steps`` fixed global batches; one process sees every batch whole.

    Args:
        rank, world_size: as given to the Trainer.
        steps: number of batches.
        sizes: samples of each rank in a global batch; a single process gets all of them, in order of rank.
    """
    generator = torch.Generator().manual_seed(7)
    total = sum(sizes)
    batches = []
    for _ in range(steps):
        x = torch.randn(total, WIDTH, generator=generator)
        y = torch.randint(CLASSES, (total,), generator=generator)
        first, last = (0, total) if world_size == 1 else (sum(sizes[:rank]), sum(sizes[: rank + 1]))
        batches.append((x[first:last], y[first:last]))
    return DataLoader(Steps(batches), batch_size=None)


class Resumable:
    """Batches that know where they are."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.batches = list(make_loader(rank, world_size, sizes=(5, 3) if world_size == 2 else (8,)))
        self.done = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        if self.done == len(self.batches):  # the end of an epoch
            self.done = 0
        while self.done < len(self.batches):
            self.done += 1
            yield self.batches[self.done - 1]

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.done = state["done"]


def plain_loader(samples: int = 16, batch_size: int = 4) -> DataLoader[Any]:
    """The same samples on every rank, for tests that only need something to run on."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(samples, WIDTH, generator=generator)
    return DataLoader(TensorDataset(x, torch.randint(CLASSES, (samples,), generator=generator)), batch_size=batch_size)


def whole_state(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One state dict from those of all ranks: shards joined, replicas compared bit for bit."""
    whole = {}
    for key, first in parts[0].items():
        if key.endswith(("head.weight", "head.bias")):
            whole[key] = torch.cat([part[key] for part in parts])
            continue
        for part in parts[1:]:
            assert torch.equal(first, part[key]), f"{key} differs between ranks"
        whole[key] = first
    return whole
