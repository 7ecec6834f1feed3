"""``optimizer.fused=auto``: PyTorch's one pass over the parameters on a CPU, and nothing else about a run changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lightning_pfc import PartialFCModule, train
from lightning_pfc.config import compose
from lightning_pfc.optim.factory import create_optimizer
from tests.trainer.test_train import NET, TINY


@pytest.fixture(autouse=True)
def own_group(no_leaked_process_group: None) -> Iterator[None]:
    """The strategy makes a group of one process, which a Trainer leaves behind."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def made(name: str = "adamw", row_sparse: bool = False, device: str = "cpu", **more: Any) -> torch.optim.Optimizer:
    torch.manual_seed(0)
    config = {"name": name, "lr": 0.01, "fused": "auto", **more}
    return create_optimizer(nn.Linear(3, 2, device=device), config, row_sparse=row_sparse)


@pytest.mark.parametrize(
    ("options", "fused"),
    [
        ({}, True),
        ({"row_sparse": True}, True),
        ({"device": "meta"}, None),
        ({"name": "sgd"}, True),
        ({"name": "rowwise_adagrad"}, None),
        ({"name": "rmsprop"}, None),
        ({"fused": False}, False),
        ({"fused": True}, True),
    ],
)
def test_where_auto_is_one_pass(options: dict[str, Any], fused: bool | None) -> None:
    assert made(**options).param_groups[0].get("fused") is fused


@pytest.mark.parametrize("fused", ["autox", "true", 2])
def test_a_word_that_is_none_is_refused(fused: Any) -> None:
    with pytest.raises(TypeError, match=f"fused={fused!r} must be auto, True or False"):
        made(fused=fused)


def test_a_head_without_storage_counts_as_where_it_will_be() -> None:
    module = PartialFCModule(backbone="glyphnet", num_classes=5, embedding_dim=2, input_size=(1, 32, 32))
    config = {"name": "adamw", "lr": 0.01, "fused": "auto"}
    assert create_optimizer(module, config, row_sparse=False).defaults["fused"] is True


def test_its_steps_are_those_of_torchs_default() -> None:
    optimizers = [made(weight_decay=0.1), made(weight_decay=0.1, fused=None)]
    for step in range(4):
        for optimizer in optimizers:
            generator = torch.Generator().manual_seed(step)
            for param in optimizer.param_groups[0]["params"]:
                param.grad = torch.randn(param.shape, generator=generator)
            optimizer.step()
    ours, theirs = ([p.detach() for p in o.param_groups[0]["params"]] for o in optimizers)
    torch.testing.assert_close(ours, theirs)


def test_gradients_are_clipped_in_half_precision_all_the_same(tmp_path: Path) -> None:
    """A Trainer refuses optimizers that say they unscale gradients, as fused ones do."""
    assert compose([]).optimizer.fused == "auto"
    words = ["optimizer=adamw_fast_head", "trainer.precision=bf16-mixed", "trainer.gradient_clip_val=1", "test=false"]
    results = train(*TINY, *NET, *words, "trainer.max_epochs=1", "plots=false", "logger=none", f"output_dir={tmp_path}")
    assert results["steps"] > 0
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]
    assert all(group["fused"] for group in state["param_groups"])
