"""Replicas that are not: found at the next check, with the first parameter and the ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_pfc import PartialFCStrategy
from lightning_pfc.callbacks import ReplicaCheck
from lightning_pfc.callbacks.replicas import bit_sum
from tests.ranks import RankPool
from tests.trainer.world import TheirModule, make_loader, make_trainer


class Drifts(TheirModule):
    """One bit of one value, on one rank, after the third step."""

    def __init__(self, rank: int, name: str) -> None:
        super().__init__(late=True)
        self.where, self.name = rank, name

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 3 and self.global_rank == self.where:
            data = self.get_parameter(self.name).detach().view(-1)
            data[-1] = torch.nextafter(data[-1], torch.tensor(9.0))


def run(rank: int, world_size: int, where: int, name: str, group: int | None, every: int) -> str:
    trainer = make_trainer(
        rank,
        world_size,
        strategy=PartialFCStrategy(head_group_size=group),
        callbacks=[ReplicaCheck(every_n_steps=every)],
    )
    try:
        trainer.fit(Drifts(where, name), make_loader(rank, world_size, sizes=(2,) * world_size))
    except RuntimeError as error:
        return str(error)
    return f"done after {trainer.global_step}"


@pytest.mark.parametrize(
    ("where", "name", "group", "every", "found"),
    [
        (-1, "", None, 1, "done after 6"),
        (-1, "", 2, 1, "done after 6"),
        (2, "backbone.2.bias", None, 1, "parameter backbone.2.bias of rank 2 is not that of the other ranks at step 3"),
        (
            0,
            "backbone.0.weight",
            2,
            2,
            "parameter backbone.0.weight of rank 0 is not that of the other ranks at step 4",
        ),
        (3, "head.weight", 2, 1, "parameter head.weight of rank"),  # a copy of the centers of rank 1
        (2, "head.weight", None, 1, "done after 6"),  # centers are nobody's copies
    ],
)
def test_drift_is_found_and_named(
    ranks: RankPool, where: int, name: str, group: int | None, every: int, found: str
) -> None:
    for text in ranks.run(4, run, where, name, group, every, timeout=200):
        assert text.startswith(found), text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool])
@pytest.mark.parametrize("size", [1, 3, 8, 1001])
def test_every_change_of_one_value_changes_the_sum(dtype: torch.dtype, size: int) -> None:
    base = torch.arange(size).remainder(2).to(dtype)
    for place in {0, size // 2, size - 1}:
        other = base.clone()
        other[place] = 1 - other[place].int()
        assert bit_sum(other) != bit_sum(base)


def test_the_sum_follows_the_values_in_any_layout() -> None:
    images = torch.randn(4, 3, 5, 5)
    assert bit_sum(images.to(memory_format=torch.channels_last)) == bit_sum(images)
    assert bit_sum(images[:, 1:]) == bit_sum(images[:, 1:].clone())
    assert bit_sum(images.flatten()[1:]) == bit_sum(images.flatten()[1:].clone())


@pytest.mark.parametrize("options", [{"every_n_steps": 0}, {"action": "ignore"}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ReplicaCheck(**options)
