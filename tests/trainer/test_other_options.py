"""Going on with other options than those of a checkpoint: refused where it cannot be, in force and said elsewhere."""

from __future__ import annotations

import subprocess
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, SequentialLR

from lightning_pfc.checkpoint import CheckpointError
from lightning_pfc.optim import LARS, RowWiseAdagrad, SparseAdamW, SparseSGD
from tests import console
from tests.ranks import RankPool
from tests.trainer.test_checkpoints import split_sizes
from tests.trainer.world import TheirModule, make_loader, make_trainer

MADE: dict[str, Any] = {
    "SGD": partial(torch.optim.SGD, momentum=0.9),
    "AdamW": torch.optim.AdamW,
    "Adam": torch.optim.Adam,
    "SparseSGD": partial(SparseSGD, momentum=0.9),
    "SparseAdamW": partial(SparseAdamW, missed_steps="decay"),
    "RowWiseAdagrad": RowWiseAdagrad,
    "LARS": LARS,
    "RMSprop": torch.optim.RMSprop,
}
OTHERS = (("SGD", "SparseSGD", "AdamW", "LARS"), ("SparseAdamW", "Adam", "AdamW", "RowWiseAdagrad"), ("RMSprop", "SGD"))
SAME = ({"SGD", "SparseSGD"}, {"AdamW", "SparseAdamW"})  # each reads the other's state


class Scheduled(TheirModule):
    def __init__(self, schedule: str = "", **options: Any) -> None:
        super().__init__(**options)
        self.schedule = schedule

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        made: Any = {
            "": lambda: None,
            "lambda": lambda: LambdaLR(optimizer, lambda step: 1.0 / (1 + step)),
            "sequence": lambda: SequentialLR(
                optimizer, [LinearLR(optimizer, total_iters=2), LambdaLR(optimizer, lambda step: 0.5)], milestones=[2]
            ),
            "cosine": lambda: CosineAnnealingLR(optimizer, 20),
        }[self.schedule]()
        if made is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": made, "interval": "step"}}


def run(rank: int, world_size: int, load: str | None, save: str | None, until: int, module: dict[str, Any]) -> Any:
    model = Scheduled(**module)
    rates: list[float] = []
    step = model.training_step

    def training_step(*args: Any) -> Any:
        rates.append(model.trainer.optimizers[0].param_groups[0]["lr"])
        return step(*args)

    model.training_step = training_step  # type: ignore[assignment, method-assign]
    trainer = make_trainer(rank, world_size, max_steps=until, max_epochs=-1)
    said = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            loader = make_loader(rank, world_size, steps=8, sizes=split_sizes(world_size))
            trainer.fit(model, loader, ckpt_path=load)
        except CheckpointError as error:
            said = str(error)
    if save is not None:
        trainer.save_checkpoint(save)
    told = [str(w.message) for w in caught if "other options" in str(w.message)]
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    return said, told, rates, weights, trainer.optimizers[0].state_dict()["param_groups"][0]


@pytest.mark.parametrize("world_size", [1, 2])
def test_another_optimizer_is_refused_by_name_on_every_rank(ranks: RankPool, tmp_path: Path, world_size: int) -> None:
    for before in MADE if world_size == 1 else ("SGD", "SparseSGD"):
        path = str(tmp_path / f"{before}.ckpt")
        ranks.run(world_size, run, None, path, 2, {"optimizer": MADE[before], "lr": 0.01})
        for now in next(others for others in OTHERS if before in others):
            same = before == now or {before, now} in SAME
            for said, *_ in ranks.run(world_size, run, path, None, 3, {"optimizer": MADE[now], "lr": 0.01}):
                assert bool(said) != same, (before, now, said)
                if said:
                    assert f"optimizer {before}, and this run has {now}" in said
                    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("before", ["SGD", "AdamW"])
def test_a_checkpoint_of_before_does_not_say_its_optimizer(ranks: RankPool, tmp_path: Path, before: str) -> None:
    path = str(tmp_path / "a.ckpt")
    ranks.run(1, run, None, path, 2, {"optimizer": MADE[before], "lr": 0.01})
    content = torch.load(path, weights_only=True)
    del content["lightning_pfc"]["optimizers"]
    torch.save(content, path)
    other = "AdamW" if before == "SGD" else "SGD"
    [(said, *_)] = ranks.run(1, run, path, None, 3, {"optimizer": MADE[other], "lr": 0.01})
    assert "momentum" in said if before == "SGD" else "betas" in said
    assert f"this run has {other}" in said
    [(said, *_)] = ranks.run(1, run, path, None, 3, {"optimizer": MADE[before], "lr": 0.01})
    assert said == ""


@pytest.mark.parametrize("schedule", ["", "lambda", "sequence", "cosine"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_rate_that_is_changed_on_resume_is_in_force(
    ranks: RankPool, tmp_path: Path, schedule: str, world_size: int
) -> None:
    """What the run with the new rate from the start has at that step; and it trains with it, not only says so."""
    path = str(tmp_path / "a.ckpt")
    common: dict[str, Any] = {"optimizer": MADE["SGD"], "schedule": schedule}
    ranks.run(world_size, run, None, path, 4, {"lr": 0.1, **common})
    wanted = ranks.run(world_size, run, None, None, 8, {"lr": 0.004, **common})[0][2]
    unchanged = ranks.run(world_size, run, path, None, 8, {"lr": 0.1, **common})
    assert unchanged[0][1] == [], "nothing differs"
    changed = ranks.run(world_size, run, path, None, 8, {"lr": 0.004, **common})
    assert changed[0][2] == pytest.approx(wanted[4:])
    assert "lr: 0.1 in the checkpoint, 0.004 in this run, in force: this run's" in changed[0][1][0]
    name = "backbone.0.weight"
    start = torch.load(path, weights_only=True)["state_dict"][name] if world_size == 1 else None
    if start is not None:  # a rate 25 times smaller moves less
        assert (changed[0][3][name] - start).norm() < 0.3 * (unchanged[0][3][name] - start).norm()


def test_every_other_option_is_in_force_and_said(ranks: RankPool, tmp_path: Path) -> None:
    path = str(tmp_path / "a.ckpt")
    ranks.run(1, run, None, path, 2, {"optimizer": MADE["SGD"], "weight_decay": 0.0})
    other = partial(torch.optim.SGD, momentum=0.5)
    [(_, [told], _, _, group)] = ranks.run(1, run, path, None, 3, {"optimizer": other, "weight_decay": 0.25})
    assert (group["momentum"], group["weight_decay"]) == (0.5, 0.25)
    assert "momentum: 0.9 in the checkpoint, 0.5 in this run" in told
    assert "weight_decay: 0.0 in the checkpoint, 0.25 in this run" in told


class WithOptions(L.LightningDataModule):
    """A user's own data module; Lightning keeps what ``save_hyperparameters`` collects."""

    def __init__(self, blur: float) -> None:
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> Any:
        return make_loader(0, 1, steps=8, sizes=split_sizes(1))


def run_with_data(rank: int, world_size: int, load: str | None, save: str | None, blur: float, **options: Any) -> str:
    trainer = make_trainer(rank, world_size, max_steps=2 if load is None else 3, max_epochs=-1, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(TheirModule(), datamodule=WithOptions(blur), ckpt_path=load)
    if save is not None:
        trainer.save_checkpoint(save)
    return " ".join(str(w.message) for w in caught if "other options" in str(w.message))


def test_options_of_trainer_and_data_are_said(ranks: RankPool, tmp_path: Path) -> None:
    """Each by its word, the old value and the new one; a program of one's own has the same checkpoint."""
    path = str(tmp_path / "a.ckpt")
    ranks.run(1, run_with_data, None, path, 0.5)
    assert ranks.run(1, run_with_data, path, None, 0.5) == [""]
    changed: dict[str, Any] = {
        "precision": ("32-true", "bf16-mixed"),
        "accumulate_grad_batches": (1, 2),
        "gradient_clip_val": (None, 0.5),
        "gradient_clip_algorithm": (None, "norm"),
        "limit_train_batches": (1.0, 6),
    }
    [said] = ranks.run(1, partial(run_with_data, **{word: new for word, (_, new) in changed.items()}), path, None, 0.7)
    for word, (old, new) in changed.items():
        assert f"trainer.{word}: {old} in the checkpoint, {new} in this run, in force: this run's" in said
    assert "data blur: 0.5 in the checkpoint, 0.7 in this run" in said


COMMAND = [
    "experiment=none", "backbone.embedding_dim=8", "+backbone.options.widths=[8,8]", "+backbone.options.depths=[0,0]",
    "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "plots=false", "logger=none", "test=false",
]  # fmt: skip
SYNTHETIC = [
    "data=synthetic", "data.source.num_classes=12", "data.source.images_per_class=4", "data.source.image_size=8",
    "data.source.test_classes=20", "data.source.impostors=50", "data.batch_size=16",
]  # fmt: skip


def pfc_train(*words: str, base: bool = True) -> subprocess.CompletedProcess[str]:
    """The command on a small network; ``base`` adds made-up data."""
    data = SYNTHETIC if base else []
    return console.run("lightning_pfc.commands.train", *COMMAND, *data, *words)


def test_the_command_says_it_in_one_line(tmp_path: Path) -> None:
    first = pfc_train("optimizer=sgd", "trainer.max_epochs=1", f"output_dir={tmp_path / 'a'}")
    assert first.returncode == 0, first.stderr
    word = f"ckpt_path={tmp_path / 'a' / 'checkpoints' / 'last.ckpt'}"
    other = pfc_train("optimizer=adamw", "trainer.max_epochs=2", word, f"output_dir={tmp_path / 'b'}")
    assert other.returncode > 0
    assert "Traceback" not in other.stderr + other.stdout
    assert "SGD" in other.stderr
    assert "AdamW" in other.stderr
    changed = pfc_train("optimizer=sgd", "optimizer.lr=5e-4", "loss.margin=0.2", "trainer.max_epochs=2", word,
                        "data.batch_size=8", "data.augment=flip", "seed=3", f"output_dir={tmp_path / 'c'}")  # fmt: skip
    assert changed.returncode == 0, changed.stderr
    assert "0.0005 in this run, in force: this run's" in changed.stderr + changed.stdout
    assert "loss.margin: 0.4 in the checkpoint, 0.2 in this run" in changed.stderr + changed.stdout
    for what in (
        "global batch (data.batch_size times ranks): 16 in the checkpoint, 8 in this run",
        "data.seed: 0 in the checkpoint, 3 in this run",
        "data.augment: RandomFlip(probability=0.",
        "steps of the schedule (trainer.max_epochs, trainer.max_steps): 3 in the checkpoint, 12 in this run",
    ):
        assert what in changed.stderr + changed.stdout
    content = torch.load(tmp_path / "c" / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["optimizer_states"][0]["param_groups"][0]["initial_lr"] == 5e-4
