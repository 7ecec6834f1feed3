"""Held-out identities that a checkpoint was trained on: said at its doors, since figures on them say too much."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from lightning_pfc.data.verification import Pairs, VerificationSet
from lightning_pfc.strategies.already_seen import already_seen
from lightning_pfc.transfer import InitFrom
from tests.ranks import RankPool
from tests.trainer.test_identities import NAMES, Named, Sized
from tests.trainer.world import make_trainer


class HoldsOut(Named):
    """The fixed batches of some, to be judged on others."""

    def __init__(self, rank: int, world_size: int, names: Sequence[str], held_out: Sequence[str]) -> None:
        super().__init__(rank, world_size, names)
        none = torch.zeros(0, dtype=torch.int64)
        pairs, images = Pairs(none, none, none.bool(), none), cast(Any, none)
        self.data = SimpleNamespace(
            validation={}, test={"test": VerificationSet(images, pairs, none, "", list(held_out))}
        )


def go(rank: int, world_size: int, held_out: list[str], door: str, load: str | None, save: str | None) -> list[str]:
    from lightning_pfc import PartialFCStrategy

    names = [*NAMES, "lisa"] if door == "names" else NAMES
    strategy = PartialFCStrategy(match="names" if door == "names" else None)
    callbacks: list[Any] = [InitFrom(str(load))] if door == "init_from" else []
    steps = 3 if load else 2
    trainer = make_trainer(
        rank, world_size, max_steps=steps, max_epochs=-1, strategy=strategy, callbacks=callbacks, limit_val_batches=0
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data = HoldsOut(rank, world_size, names, held_out)
        trainer.fit(Sized(len(names)), datamodule=data, ckpt_path=None if door == "init_from" else load)
    if save is not None:
        trainer.save_checkpoint(save)
    return [str(each.message) for each in said if "was trained on" in str(each.message)]


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_door_says_so_once(ranks: RankPool, tmp_path: Path, world_size: int) -> None:
    path = str(tmp_path / "a.ckpt")
    assert ranks.run(world_size, go, ["zoe", "yves"], "fit", None, path) == [[]] * world_size
    for door in ("fit", "names", "init_from"):
        assert ranks.run(world_size, go, ["zoe", "yves"], door, path, None) == [[]] * world_size
        first, *others = ranks.run(world_size, go, ["zoe", "gerd", "dora"], door, path, None)
        assert others == [[]] * (world_size - 1)
        (text,) = first
        where = f"init_from={path}" if door == "init_from" else path
        assert text.startswith(f"{where} was trained on 2 of the 3 identities of 'test' (such as 'dora'): ")


def test_names_are_read_once_and_counted_by_set() -> None:
    read = iter(["a", "b", "c", "d", "b"])
    found = already_seen(read, {"val": ["b", "x", "x"], "far": ["y"], "test": ["d", "c", "b"]})
    assert found == ["1 of the 2 identities of 'val' (such as 'b')", "3 of the 3 identities of 'test' (such as 'b')"]
    assert already_seen(["a"], {}) == []
