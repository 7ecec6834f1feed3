"""Helpers of training scripts with a head on several ranks: scalers, averages of weights, accelerate."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_pfc.distributed.stated_rows import _warned as rows_said_once
from lightning_pfc.optim import SparseSGD
from tests.ranks import RankPool, join_group
from tests.ranks.test_wrappers import Model, batch

FULL = StateDictOptions(full_state_dict=True)


def scaled(rank: int, world_size: int, make: Callable[..., Any]) -> Any:
    """An overflow in the rows of the last rank alone, then a step without."""
    join_group()
    model = Model()
    wrapped = DDP(model.backbone)
    optimizer = make(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scales, moved = [], []
    for step in range(2):
        before = [model.backbone.weight.detach().clone(), model.head.weight.detach().clone()]
        optimizer.zero_grad()
        x, labels = batch(rank, world_size, step)
        scaler.scale(model.head(wrapped(x), labels)).backward()
        if step == 0 and rank == world_size - 1:
            assert model.head.weight.grad is not None
            grad = model.head.weight.grad
            (grad._values() if grad.is_sparse else grad)[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        now = [model.backbone.weight, model.head.weight]
        moved.append([not torch.equal(*pair) for pair in zip(before, now, strict=True)])
    return scales, moved, model.backbone.weight.detach()


@pytest.mark.parametrize("make", [torch.optim.SGD, SparseSGD], ids=lambda make: make.__name__)
@pytest.mark.parametrize("world_size", [2, 3])
def test_an_overflow_in_one_ranks_rows_is_skipped_by_all(
    ranks: RankPool, make: Callable[..., Any], world_size: int
) -> None:
    said = ranks.run(world_size, scaled, make, group="later")
    for scales, moved, backbone in said:
        assert scales == [4.0, 4.0]
        assert moved == [[False, False], [True, True]]
        assert torch.equal(backbone, said[0][2])


def by_torch(model: nn.Module) -> Any:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7))


def by_swa(model: nn.Module) -> Any:
    return AveragedModel(model, use_buffers=True)


def by_timm(model: nn.Module) -> Any:
    return ModelEmaV3(model, decay=0.7)


def averaged(rank: int, world_size: int, make: Callable[..., Any]) -> dict[str, Tensor]:
    if world_size > 1:
        join_group()
    model = Model()
    average = make(model)
    wrapped = DDP(model.backbone) if world_size > 1 else model.backbone
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(3):
        optimizer.zero_grad()
        x, labels = batch(rank, world_size, step)
        model.head(wrapped(x), labels).backward()
        optimizer.step()
        (average.update if make is by_timm else average.update_parameters)(model)
    average.module(*batch(rank, world_size, 4))  # the copy of the head talks to the same ranks
    whole: Any = get_model_state_dict(average.module, options=FULL)
    return {key: whole[key].clone() for key in ("backbone.weight", "head.weight")}


@pytest.mark.parametrize("make", [by_torch, by_swa, by_timm], ids=lambda make: make.__name__)
def test_averages_of_weights_are_those_of_one_process(ranks: RankPool, make: Callable[..., Any]) -> None:
    [alone] = ranks.run(1, averaged, make)
    for here in ranks.run(2, averaged, make, group="later"):
        torch.testing.assert_close(here, alone, rtol=1e-5, atol=1e-6)


def accelerated(rank: int, world_size: int, folder: str) -> Any:
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from accelerate.state import AcceleratorState, GradientState, PartialState  # type: ignore[import-untyped]

    if world_size > 1:
        join_group()
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
        os.environ.update({name: str(value) for name, value in names.items()})
    try:
        accelerator = Accelerator(cpu=True)
        assert accelerator.num_processes == world_size
        model, refused = Model(), ""
        if world_size > 1:
            try:
                accelerator.prepare(model)
            except RuntimeError as error:
                refused = str(error)
        wrapped = accelerator.prepare(model.backbone)
        optimizer = accelerator.prepare(torch.optim.SGD(model.parameters(), lr=0.01))
        for step in range(3):
            optimizer.zero_grad()
            x, labels = batch(rank, world_size, step)
            accelerator.backward(model.head(wrapped(x), labels))
            accelerator.clip_grad_norm_([*model.parameters()], 0.5)
            optimizer.step()
        rows_said_once.clear()  # by whatever this process ran before
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            accelerator.save_model(model.head, folder)
        said = [str(w.message) for w in caught if "PartialFC" in str(w.message)]
        return refused, model.backbone.weight.detach(), model.head.weight.detach(), said
    finally:
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()


def test_accelerate(ranks: RankPool, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    [(_, backbone, centers, quiet)] = ranks.run(1, accelerated, str(tmp_path / "one"))
    several = ranks.run(2, accelerated, str(tmp_path / "two"), group="later")
    for refused, own, _, _ in several:
        assert "DistributedDataParallel takes" in refused
        torch.testing.assert_close(own, backbone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.cat([rows for _, _, rows, _ in several]), centers, rtol=1e-5, atol=1e-6)
    assert quiet == []
    assert "the classes 0 to 5 of 12" in several[0][3][0]  # rank 0 writes the file
