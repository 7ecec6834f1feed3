"""Every other multi-process strategy is stopped before it overwrites a shard; one process and no head are left
alone."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, StrategyRegistry

import lightning_pfc
from lightning_pfc.distributed.owner import get_owner
from lightning_pfc.strategies import PartialFCStrategy, register
from lightning_pfc.strategies.guard import ForeignStrategyGuard
from tests.ranks import RankPool
from tests.trainer.test_strategy import NoHead
from tests.trainer.world import TheirModule, make_loader, make_trainer


class OwnDDP(DDPStrategy):
    """A strategy that a user derived from DDP."""


class Born(TheirModule):
    """Keeps a copy of its weights as they are when the head is born."""

    def setup(self, stage: str) -> None:
        self.kept = {k: v.clone() for k, v in self.state_dict().items() if not v.is_meta}


def run(rank: int, world_size: int, strategy: str, stage: str, late: bool) -> tuple[str, bool]:
    model = Born(late=late)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    chosen: Any = OwnDDP() if strategy == "own" else strategy
    trainer = make_trainer(rank, world_size, strategy=chosen)
    try:
        getattr(trainer, stage)(model, make_loader(rank, world_size))
        text = ""
    except RuntimeError as error:
        text = str(error)
    after = model.state_dict()
    return text, all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("late", [False, True], ids=["built in __init__", "built in configure_model"])
@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_stock_ddp_is_refused_before_anything_is_overwritten(ranks: RankPool, stage: str, late: bool) -> None:
    for text, intact in ranks.run(2, run, "ddp", stage, late):
        assert 'strategy="pfc"' in text
        assert intact


def test_a_strategy_derived_from_ddp_is_refused(ranks: RankPool) -> None:
    assert all('strategy="pfc"' in text for text, _ in ranks.run(2, run, "own", "fit", False))


def test_one_process_under_ddp_has_nothing_to_overwrite(ranks: RankPool) -> None:
    [(text, intact)] = ranks.run(1, run, "ddp", "fit", False)
    assert text == ""
    assert not intact


def ddp_without_head(rank: int, world_size: int) -> bool:
    make_trainer(rank, world_size, strategy="ddp").fit(NoHead(), make_loader(rank, world_size))
    return get_owner() is None


def test_a_model_without_a_head_is_left_alone(ranks: RankPool) -> None:
    assert ranks.run(2, ddp_without_head) == [True, True]


def test_fsdp_is_refused_even_alone() -> None:
    from lightning_pfc.strategies.guard import overwrites_shards

    assert overwrites_shards(FSDPStrategy())
    assert not overwrites_shards(PartialFCStrategy())
    assert not overwrites_shards(L.Trainer(accelerator="cpu", devices=1, logger=False).strategy)


def test_every_trainer_gets_the_guard() -> None:
    names = [point.value for point in entry_points(group="lightning.pytorch.callbacks_factory")]
    assert "lightning_pfc.strategies.guard:callbacks" in names
    trainer = L.Trainer(accelerator="cpu", devices=1, logger=False)
    assert sum(isinstance(callback, ForeignStrategyGuard) for callback in trainer.callbacks) == 1


def test_the_names_are_registered_once() -> None:
    register()
    assert StrategyRegistry["pfc"]["strategy"] is PartialFCStrategy
    assert "pfc_spawn" in StrategyRegistry
    trainer = L.Trainer(strategy="PFC", accelerator="cpu", devices=1, logger=False)
    assert isinstance(trainer.strategy, lightning_pfc.PartialFCStrategy)


def test_the_guard_costs_projects_that_do_not_use_the_package_little() -> None:
    # What a Trainer of such a project pays is the import of this package; timm and its kind must not be part of it.
    show = "import sys; print([name for name in ('timm', 'hydra', 'cv2') if name in sys.modules])"
    code = f"import lightning.pytorch as L; {show}; L.Trainer(accelerator='cpu', logger=False); {show}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, *_, after = done.stdout.splitlines()
    assert before == after
