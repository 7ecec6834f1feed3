"""What follows a batch also follows it where a checkpoint was taken in between: validation and the end of the epoch."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor
from torchmetrics import MeanMetric

from tests.ranks import RankPool
from tests.trainer.world import Resumable, TheirModule, make_loader, make_trainer

STEPS = 6  # of an epoch
Moment = tuple[str, int]
"""A hook, and how many steps there were."""


class Killed(Exception):
    """Stands for the end of the process."""


class Monitored(TheirModule):
    """Its rate follows what validation gives; every step and every validation draws random numbers."""

    def __init__(self) -> None:
        super().__init__(sample_rate=0.5)
        self.metric = MeanMetric()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss((batch[0] + 0.1 * torch.randn_like(batch[0]), batch[1]))
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch[0]))
        self.metric(loss.detach())
        self.log("train_metric", self.metric, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)
        self.log("drawn", torch.rand(()), sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5, threshold=0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}


class Notes(Callback):
    """Saves at a moment and ends there; notes what validations and epochs reported."""

    def __init__(self, file: str, moment: Moment | None) -> None:
        self.file, self.moment = file, moment
        self.validated: dict[int, dict[str, float]] = {}
        self.ended: dict[int, dict[str, float]] = {}

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.leave(trainer, "on_train_batch_end")

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self.validated[trainer.global_step] = _numbers(trainer)
            self.leave(trainer, "on_validation_end")

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.ended[trainer.global_step] = _numbers(trainer)

    def leave(self, trainer: L.Trainer, hook: str) -> None:
        if (hook, trainer.global_step) == self.moment:
            trainer.save_checkpoint(self.file)
            raise Killed


class EndsWhenSaved(ModelCheckpoint):
    """Lightning's own, which saves behind all others at the end of an epoch; the process ends there."""

    moment: Moment | None = None

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if ("on_train_epoch_end", trainer.global_step) == self.moment:
            raise Killed


def _numbers(trainer: L.Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def fit(rank: int, world_size: int, folder: str, moment: Moment | None, resume: str | None, often: float) -> Any:
    notes = Notes(f"{folder}/x.ckpt", moment)
    stopping = EarlyStopping("val_loss", min_delta=0.3, patience=50)
    saves = EndsWhenSaved(folder, filename="x", monitor="val_loss", enable_version_counter=False)
    saves.moment = moment
    trainer = make_trainer(
        rank,
        world_size,
        max_epochs=3,
        val_check_interval=often,
        enable_checkpointing=True,
        callbacks=[stopping, notes, saves],  # what is saved before stopping has looked cannot tell that it has not
    )
    torch.manual_seed(9 if resume else 0)  # whatever is restored must not depend on what is there already
    model, loader = Monitored(), make_loader(rank, world_size, 2)
    train: Any = Resumable(rank, world_size)
    try:
        trainer.fit(model, train, loader, ckpt_path=resume)
    except Killed:
        return notes, None
    state = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    return notes, (state, rate, stopping.wait_count, float(stopping.best_score), float(saves.best_model_score or 0))


def resumed(rank: int, world_size: int, folder: str, moments: list[Moment], often: float) -> Any:
    notes, whole = fit(rank, world_size, f"{folder}/whole", None, None, often)
    found = []
    for number, moment in enumerate(moments):
        place = f"{folder}/{number}"
        first, nothing = fit(rank, world_size, place, moment, None, often)
        assert nothing is None, moment
        second, end = fit(rank, world_size, place, None, f"{place}/x.ckpt", often)
        found.append((first.validated | second.validated, first.ended | second.ended, end))
    return (notes.validated, notes.ended, whole), found


EPOCH_ENDS: list[Moment] = [
    ("on_train_batch_end", STEPS),
    ("on_train_batch_end", 2 * STEPS),
    ("on_train_batch_end", 3 * STEPS),
    ("on_validation_end", STEPS),
    ("on_train_epoch_end", 2 * STEPS),
    ("on_train_batch_end", STEPS + 2),
]
WITHIN: list[Moment] = [
    ("on_train_batch_end", 3),
    ("on_validation_end", STEPS + 3),
    ("on_train_batch_end", 2 * STEPS),
]


@pytest.mark.parametrize(
    ("world_size", "moments", "often"), [(1, EPOCH_ENDS, 1.0), (1, WITHIN, 0.5), (2, EPOCH_ENDS[1:2], 1.0)]
)
def test_what_follows_a_batch_follows_it_after_a_resume(
    ranks: RankPool, tmp_path: Any, world_size: int, moments: list[Moment], often: float
) -> None:
    for whole, found in ranks.run(world_size, resumed, str(tmp_path), moments, often, timeout=120):
        assert len(whole[0]) == 3 / often
        assert len(whole[1]) == 3
        assert whole[2][1] < 0.05  # the rate has followed
        for moment, one in zip(moments, found, strict=True):
            assert one[0] == whole[0], f"validations, interrupted {moment}"
            assert one[1] == whole[1], f"epochs, interrupted {moment}"
            assert one[2] == whole[2], f"interrupted {moment}"


def accumulated(rank: int, world_size: int, folder: str, step: int) -> list[str]:
    class Saves(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == step:
                trainer.save_checkpoint(f"{folder}/{step}.ckpt")

    trainer = make_trainer(rank, world_size, accumulate_grad_batches=4, callbacks=[Saves()])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(TheirModule(), make_loader(rank, world_size, STEPS))
    return [str(w.message) for w in caught if "accumulate_grad_batches=4" in str(w.message)]


@pytest.mark.parametrize(("step", "said"), [(2, True), (3, False), (5, False)])
def test_a_checkpoint_without_the_gradients_of_half_a_step_says_so(
    ranks: RankPool, tmp_path: Any, step: int, said: bool
) -> None:
    (messages,) = ranks.run(1, accumulated, str(tmp_path), step, timeout=60)
    assert len(messages) == said
    assert not said or "behind batch 2" in messages[0]
