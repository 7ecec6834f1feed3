"""A precision plugin of the user's own: refused beside sharded centers, and where there are none, theirs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
import pytest
import torch.distributed as dist
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins import Precision
from torch import Tensor

from lightning_pfc import PartialFC


class Counting(Precision):
    steps = 0

    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        self.steps += 1
        return super().optimizer_step(*args, **kwargs)


class WithHead(BoringModel):
    def __init__(self) -> None:
        super().__init__()
        self.head = PartialFC(embedding_dim=2, num_classes=5, loss="CosFace")

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        return self.head(self.layer(batch), batch.new_zeros(len(batch)).long())


@pytest.fixture(autouse=True)
def own_group(no_leaked_process_group: None) -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def trainer(plugin: Precision) -> L.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(
        strategy="pfc", accelerator="cpu", devices=1, plugins=[plugin], max_steps=2, limit_val_batches=0, **quiet
    )


def test_without_a_head_it_does_what_it_does_under_ddp() -> None:
    plugin = Counting()
    trainer(plugin).fit(BoringModel())
    assert plugin.steps == 2


def test_beside_a_head_it_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="precision plugin Counting cannot be used with sharded classes"):
        trainer(Counting()).fit(WithHead())
