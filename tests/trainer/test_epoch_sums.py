"""What an epoch has logged when it is interrupted goes into what it reports at its end."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torchmetrics import MeanMetric

from lightning_pfc.callbacks import Throughput
from lightning_pfc.strategies.epoch_sums import EpochSums
from lightning_pfc.strategies.once import acts
from tests.ranks import RankPool
from tests.trainer.world import Resumable, TheirModule, make_trainer

STEPS = 6


class Logs(TheirModule):
    """Every kind of reduction, synchronised and not, and a metric of torchmetrics."""

    def __init__(self) -> None:
        super().__init__(sample_rate=0.5)
        self.mean_of_batches = MeanMetric()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        size = len(batch[0])
        for kind in ("mean", "max", "min", "sum"):
            self.log(kind, loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=size, reduce_fx=kind)
        self.log("both", loss, on_step=True, on_epoch=True, sync_dist=True, batch_size=size)
        self.log("own", loss * (1 + self.global_rank), on_step=False, on_epoch=True, batch_size=size)
        self.mean_of_batches(loss.detach())
        self.log("metric", self.mean_of_batches, on_step=False, on_epoch=True)
        if batch_idx >= 2:
            self.log("later", loss, on_step=False, on_epoch=True, batch_size=size)
        return loss


class Epochs(Callback):
    """What each epoch has reported, bit for bit."""

    def __init__(self) -> None:
        self.reports: dict[int, dict[str, float]] = {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer._logger_connector.epoch_end_reached()
        numbers = trainer._logger_connector.metrics["log"]
        self.reports[trainer.current_epoch] = {name: float(value) for name, value in numbers.items()}


def fit(rank: int, world_size: int, folder: str, max_steps: int, resume: bool) -> tuple[Any, int]:
    epochs, throughput = Epochs(), Throughput()
    saves = ModelCheckpoint(folder, every_n_train_steps=1, save_last=True, save_top_k=0)
    trainer = make_trainer(
        rank,
        world_size,
        max_epochs=2,
        max_steps=max_steps,
        enable_checkpointing=True,
        callbacks=[epochs, throughput, saves],
        log_every_n_steps=1,
    )
    loader: Any = Resumable(rank, world_size)
    if resume:  # whatever is restored must not depend on what is there already
        torch.manual_seed(9)
    trainer.fit(Logs(), loader, ckpt_path="last" if resume else None)
    return epochs.reports, throughput.samples


def interrupted(rank: int, world_size: int, folder: str, stops: list[int]) -> Any:
    whole = fit(rank, world_size, f"{folder}/whole", -1, False)
    found = []
    for stop in stops:
        first, _ = fit(rank, world_size, f"{folder}/{stop}", stop, False)
        second, samples = fit(rank, world_size, f"{folder}/{stop}", -1, True)
        found.append((first | second, samples))
    return whole, found


@pytest.mark.parametrize(("world_size", "stops"), [(1, [1, 2, 3, 5, 6, 7, 8, 11, 12]), (2, [2, 9])])
def test_a_resumed_epoch_reports_what_the_whole_one_does(
    ranks: RankPool, tmp_path: Any, world_size: int, stops: list[int]
) -> None:
    for whole, found in ranks.run(world_size, interrupted, str(tmp_path), stops, timeout=120):
        assert set(whole[0]) == {0, 1}
        assert set(whole[0][0]) >= {"mean", "max", "min", "sum", "both_epoch", "own", "metric", "later"}
        for stop, one in zip(stops, found, strict=True):
            assert one == whole, f"interrupted after step {stop}"


def on_fewer(rank: int, world_size: int, folder: str) -> Any:
    if world_size == 2:
        fit(rank, 2, folder, 3, False)
        return fit(rank, 2, f"{folder}-whole", -1, False)
    return fit(rank, 1, folder, -1, True)


def test_on_another_number_of_ranks_the_sums_are_those_of_all(ranks: RankPool, tmp_path: Any) -> None:
    whole = ranks.run(2, on_fewer, str(tmp_path / "run"), timeout=60)[0]
    (fewer,) = ranks.run(1, on_fewer, str(tmp_path / "run"), timeout=60)
    for name in ("mean", "max", "min", "both_epoch"):
        assert fewer[0][0][name] == pytest.approx(whole[0][0][name], rel=1e-3), name


@pytest.mark.parametrize("strategy", ["auto", "pfc"])
def test_a_list_of_callbacks_may_be_given_to_two_trainers(strategy: str) -> None:
    """Lightning adds to the list that it is given, also what an entry point offers."""
    mine: list[L.Callback] = []
    for _ in range(3):
        trainer = L.Trainer(callbacks=mine, accelerator="cpu", devices=1, strategy=strategy, logger=False)
    found = [each for each in trainer.callbacks if isinstance(each, EpochSums)]  # type: ignore[attr-defined]
    assert [acts(each, trainer) for each in found] == [True, *[False] * (len(found) - 1)]
