"""``init_from``: a run that begins anew with what another one, on any number of ranks, has learned."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_pfc.checkpoint import CheckpointError
from lightning_pfc.runs.resuming import earlier_run
from lightning_pfc.transfer import InitFrom
from tests.ranks import RankPool
from tests.trainer.test_identities import NAMES, OTHERS, Named, Sized, go, rows_of
from tests.trainer.test_other_options import pfc_train
from tests.trainer.world import make_trainer


class Look(L.Callback):
    """What a run has before its first step."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        state = pl_module.state_dict()
        self.found = {name: value.clone() for name, value in state.items() if value.dim()}
        self.fresh = (trainer.global_step, int(state["head.step"]), len(trainer.optimizers[0].state))


def begin(rank: int, world_size: int, names: list[str] | None, source: str, parts: Any, match: Any, load: Any) -> Any:
    from lightning_pfc import PartialFCStrategy

    look, start = Look(), InitFrom(source, parts)
    start.goes_on_from = load
    strategy = PartialFCStrategy(match=match)
    trainer = make_trainer(rank, world_size, max_steps=3, max_epochs=-1, strategy=strategy, callbacks=[start, look])
    trainer.limit_val_batches = 0
    try:
        trainer.fit(Sized(len(names or NAMES)), datamodule=Named(rank, world_size, names), ckpt_path=load)
    except (CheckpointError, FileNotFoundError) as error:
        return str(error)
    return look.found, look.fresh, str(start.report)


def whole(parts: list[Any]) -> dict[str, Tensor]:
    return {
        name: torch.cat([part[0][name] for part in parts]) if name.startswith("head.") else value
        for name, value in parts[0][0].items()
    }


@pytest.mark.parametrize("world_size", [1, 2])
def test_centers_go_by_name_and_all_else_is_fresh(ranks: RankPool, tmp_path: Path, world_size: int) -> None:
    source = tmp_path / "a.ckpt"
    ranks.run(3 - world_size, go, "fit", NAMES, None, str(source), None)
    there = rows_of(source, NAMES)
    backbone = {key: value for key, value in stored(source).items() if key.startswith("backbone.")}
    for case, (names, _) in OTHERS.items():
        parts = ranks.run(world_size, begin, names, str(source), None, None, None)
        found = whole(parts)
        assert {part[1] for part in parts} == {(0, 0, 0)}, case
        for name, value in backbone.items():
            assert torch.equal(found[name], value), (case, name)
        new = Sized(len(names)).to("cpu").head.weight.detach()
        for row, name in enumerate(names):
            known = name in NAMES
            center = there["state_dict/head.weight"][NAMES.index(name)] if known else new[row]
            assert torch.equal(found["head.weight"][row], center), (case, name)
        assert f"rows of {len(set(NAMES) & set(names))} classes by their names" in parts[0][2]


def stored(path: Path) -> dict[str, Tensor]:
    from lightning_pfc.checkpoint.reader import read_checkpoint

    state: dict[str, Tensor] = read_checkpoint(path)["state_dict"]
    return state


@pytest.mark.parametrize("world_size", [1, 2])
def test_what_cannot_be_begun_with_is_said_on_every_rank(ranks: RankPool, tmp_path: Path, world_size: int) -> None:
    source = tmp_path / "a.ckpt"
    ranks.run(world_size, go, "fit", NAMES, None, str(source), None)
    state = stored(source)
    torch.save({name: value[:1] for name, value in state.items() if value.dim()}, tmp_path / "b.pth")
    half = [*NAMES[:5], *"uvwxyz"]
    cases = (
        (NAMES, tmp_path / "b.pth", None, "is of another architecture"),
        (half, source, ["backbone", "head"], "only 5 names are in both"),
        (["anna", *NAMES[:10]], source, None, "classes 0 and 1 of the data are both named 'anna'"),
        ([*NAMES, "x"], tmp_path / "c.pth", ["head"], "its centers"),
    )
    torch.save({"head.weight": torch.zeros(11, 3)}, tmp_path / "c.pth")
    for names, path, parts, expected in cases:
        for said in ranks.run(world_size, begin, names, str(path), parts, None, None):
            assert expected in said
            assert len(said.splitlines()) == 1


def test_by_position_and_a_checkpoint_that_goes_before(ranks: RankPool, tmp_path: Path) -> None:
    source, other = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    ranks.run(2, go, "fit", NAMES, None, str(source), None)
    expected = stored(source)["head.weight"]
    for names, match in ((OTHERS["permuted"][0], "position"), (None, None)):
        found = whole(ranks.run(2, begin, names, str(source), ["head"], match, None))
        assert torch.equal(found["head.weight"], expected)
    ranks.run(1, go, "fit", NAMES, None, str(other), None)
    [(found, fresh, report)] = ranks.run(1, begin, NAMES, str(tmp_path / "gone.pth"), None, None, str(other))
    assert fresh[0] == 2
    assert report == "None"
    assert torch.equal(found["head.weight"], stored(other)["head.weight"])


def test_the_command(tmp_path: Path) -> None:
    """As typed: a run, then another one that begins with it; which goes on without it."""
    words = ("trainer.max_epochs=1", "trainer.limit_train_batches=2", "test=false")
    assert pfc_train(*words, f"output_dir={tmp_path / 'a'}").returncode == 0
    second = pfc_train(*words, f"init_from={tmp_path / 'a'}", f"output_dir={tmp_path / 'b'}")
    assert second.returncode == 0, second.stderr
    assert "init_from=" in second.stderr
    assert "head: all rows, by their position" in second.stderr
    shutil.rmtree(tmp_path / "a")
    third = pfc_train(f"resume={tmp_path / 'b'}", "trainer.max_epochs=2")
    assert third.returncode == 0, third.stderr
    assert "was for the beginning: this goes on from" in third.stderr
    with pytest.raises(ValueError, match="Leave one of them out"):
        earlier_run([f"init_from={tmp_path / 'a'}", f"resume={tmp_path / 'b'}"])
