"""Norms over parameters under the strategy: in hooks, in manual optimization, in optimizers and their checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm.optim
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from tests.ranks import RankPool, join_group
from tests.trainer.test_strategy import compare
from tests.trainer.world import TheirModule, make_loader, make_trainer, whole_state


class ClipsInAHook(TheirModule):
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        clip_grad_norm_(self.parameters(), 0.05)


class ClipsByHand(TheirModule):
    """Manual optimization."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        loss = self.loss(batch)
        self.losses.append(loss.item())
        optimizer.zero_grad()
        self.manual_backward(loss)
        clip_grad_norm_(self.parameters(), 0.05)
        optimizer.step()


class Configured(TheirModule):
    """The norm in the hook that Lightning has for it, and torch's function instead of Lightning's."""

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        torch.nn.utils.clip_grads_with_norm_(
            list(self.parameters()), 0.05, torch.nn.utils.get_total_norm([p.grad for p in self.parameters()])
        )


def adafactor(params: Any, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(params, **options)


def lamb(params: Any, **options: Any) -> torch.optim.Optimizer:
    return timm.optim.create_optimizer_v2(params, opt="lamb", **options)  # type: ignore[no-any-return]


MODULES = {"hook": ClipsInAHook, "manual": ClipsByHand, "configured": Configured, "plain": TheirModule}


def fit(rank: int, world_size: int, kind: str, options: dict[str, Any]) -> Any:
    if world_size > 1:
        join_group()
    model = MODULES[kind](**options)
    make_trainer(rank, world_size).fit(model, make_loader(rank, world_size))
    return model.losses, model.state_dict()


@pytest.mark.parametrize("kind", ["hook", "manual", "configured"])
def test_clipping_outside_of_the_trainer_uses_one_norm(ranks: RankPool, kind: str) -> None:
    [(losses, expected)] = ranks.run(1, fit, kind, {})
    results = ranks.run(2, fit, kind, {}, group="later")
    for found, _ in results:
        torch.testing.assert_close(found, losses, rtol=1e-5, atol=1e-6)
    state = whole_state([part for _, part in results])
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", [adafactor, lamb])
def test_optimizers_with_norms_train_as_on_one_process(ranks: RankPool, optimizer: Any) -> None:
    compare(ranks, {"optimizer": optimizer, "lr": 0.01})


def stop(rank: int, world_size: int, folder: Path, steps: int, go_on: bool) -> Any:
    if world_size > 1:
        join_group()
    model = TheirModule(adafactor, lr=0.01)
    trainer = make_trainer(rank, world_size, max_steps=steps)
    trainer.fit(model, make_loader(rank, world_size), ckpt_path=folder / "a.ckpt" if go_on else None)
    trainer.save_checkpoint(folder / ("b.ckpt" if go_on else "a.ckpt"))
    return model.state_dict()


def test_state_of_such_an_optimizer_goes_on_over_another_number_of_ranks(ranks: RankPool, tmp_path: Path) -> None:
    for folder in ("one", "two", "three"):
        (tmp_path / folder).mkdir()
    ranks.run(1, stop, tmp_path / "one", 3, False)
    [expected] = ranks.run(1, stop, tmp_path / "one", 6, True)
    ranks.run(2, stop, tmp_path / "two", 3, False, group="later")
    on_two = whole_state(ranks.run(2, stop, tmp_path / "two", 6, True, group="later"))
    [on_one] = ranks.run(1, stop, tmp_path / "two", 6, True)
    for state in (on_two, on_one):
        for key, value in expected.items():
            torch.testing.assert_close(state[key], value, rtol=1e-5, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")


def refused(rank: int, world_size: int) -> tuple[str, int]:
    join_group()
    model = TheirModule(torch.optim.LBFGS)
    try:
        make_trainer(rank, world_size).fit(model, make_loader(rank, world_size))
    except ValueError as error:
        return str(error), len(model.losses)
    return "", len(model.losses)


def test_an_optimizer_that_cannot_be_right_is_refused_before_the_first_step(ranks: RankPool) -> None:
    for said, steps in ranks.run(2, refused, group="later"):
        assert said.startswith("LBFGS takes a norm")
        assert "shard" in said
        assert "lightning_pfc.optim" in said
        assert steps == 0


def one_process(rank: int, world_size: int) -> bool:
    model = TheirModule()
    make_trainer(rank, world_size).fit(model, make_loader(rank, world_size))
    assert isinstance(model.head, nn.Module)
    return type(model.head.weight.grad) is Tensor


def test_the_gradient_of_one_process_is_an_ordinary_one(ranks: RankPool) -> None:
    assert ranks.run(1, one_process) == [True]
