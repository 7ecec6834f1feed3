"""The data module on real processes, alone and under a Trainer: the same global batches, errors that all ranks hear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from lightning_pfc.data import Files, IdentityDataModule, Joint, Synthetic
from lightning_pfc.data.batches import EpochSampler, TrainingLoader
from tests.ranks import RankPool
from tests.trainer.world import make_trainer

GLOBAL_BATCH = 16


def make_module(world_size: int = 1, **kwargs: Any) -> IdentityDataModule:
    source = Synthetic(num_classes=13, images_per_class=11, image_size=8, test_classes=30, impostors=50)
    return IdentityDataModule(source, batch_size=GLOBAL_BATCH // world_size, **kwargs)


# --- on ranks ---------------------------------------------------------------------------------------------------------


def _load(rank: int, world_size: int, epoch: int) -> list[tuple[Tensor, Tensor]]:
    module = make_module(world_size)
    module.prepare_data()
    module.setup()
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return list(loader)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_global_batches_of_one_process(ranks: RankPool, world_size: int) -> None:
    (alone,) = ranks.run(1, _load, 3)
    parts = ranks.run(world_size, _load, 3)
    assert len(alone) == 143 // GLOBAL_BATCH
    for step, (images, labels) in enumerate(alone):
        assert torch.equal(torch.cat([part[step][1] for part in parts]), labels)
        torch.testing.assert_close(torch.cat([part[step][0] for part in parts]), images, rtol=0, atol=1e-6)


def _evaluate(rank: int, world_size: int) -> list[list[int]]:
    module = make_module(world_size)
    module.setup()
    return [index.tolist() for _, index in module.test_dataloader()[0]]


def test_evaluation_images_are_shared_out(ranks: RankPool) -> None:
    parts = ranks.run(3, _evaluate)
    assert sorted(i for part in parts for batch in part for i in batch) == list(range(120))
    assert len({len(part) for part in parts}) == 1


class _FailsOn:
    """A source that fails on one rank only, as a folder that is not mounted on one node does."""

    def __init__(self, rank: int, bad: int, where: str) -> None:
        self.fails = rank == bad
        self.where = where

    def prepare(self) -> None:
        if self.fails and self.where == "prepare":
            raise FileNotFoundError("path='/data/faces': no such folder")

    def open(self) -> Any:
        if self.fails and self.where == "open":
            raise ValueError("path='/data/faces': empty class folder 'nobody'")
        return Synthetic(num_classes=5).open()


def _fail(rank: int, world_size: int, bad: int, where: str) -> None:
    module = IdentityDataModule(_FailsOn(rank, bad, where))
    module.prepare_data()
    module.setup()


@pytest.mark.parametrize(("where", "kind"), [("prepare", "Error: "), ("open", "ValueError: ")])
@pytest.mark.parametrize("bad", [0, 1])
def test_what_is_wrong_on_one_rank_is_raised_on_all(ranks: RankPool, bad: int, where: str, kind: str) -> None:
    outcomes = ranks.outcomes(2, _fail, bad, where, timeout=60)
    for outcome in outcomes:
        assert outcome.error is not None
        assert kind in outcome.error
        assert "path='/data/faces'" in outcome.error
    other = outcomes[1 - bad].error
    assert other is not None
    assert f"rank {bad}" in other


def _missing(rank: int, world_size: int, folder: str) -> None:
    module = IdentityDataModule(Files(path=folder if rank else folder + "/nowhere"))
    module.prepare_data()
    module.setup()


def test_a_missing_folder_is_named_on_every_rank(ranks: RankPool, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "0.png")
    for outcome in ranks.outcomes(2, _missing, str(tmp_path), timeout=60):
        assert outcome.error is not None
        assert "nowhere" in outcome.error
        assert "sub-folder of images per identity" in outcome.error


def _differ(rank: int, world_size: int, early: bool) -> None:
    module = IdentityDataModule(Synthetic(num_classes=5 + rank))
    module.prepare_data()
    if early:  # as the command does: it opens the data before there are ranks, to build the head
        with pytest.MonkeyPatch.context() as patch:
            for module_name in ("datamodule", "same_data"):
                patch.setattr(f"lightning_pfc.data.{module_name}.in_group", lambda: False)
            module.setup("fit")
        assert module.num_classes == 5 + rank
    module.setup("fit")


@pytest.mark.parametrize("early", [False, True])
def test_ranks_with_other_data_are_refused(ranks: RankPool, early: bool) -> None:
    for outcome in ranks.outcomes(2, _differ, early, timeout=60):
        assert outcome.error is not None
        assert "Ranks [1] opened other data than rank 0 (rank 0: 5 classes" in outcome.error


# --- under a Trainer --------------------------------------------------------------------------------------------------


class Recorder(L.LightningModule):
    """Trains a little and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 1)
        self.seen: list[tuple[int, int, list[int]]] = []
        self.pixels: list[float] = []
        self.shown: list[int] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        self.seen.append((self.current_epoch, batch_idx, labels.tolist()))
        self.pixels.append(float(images.sum()))
        loss: Tensor = self.layer(images.flatten(1)).square().mean()
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        if not self.trainer.sanity_checking:
            self.shown += batch[1].tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def plain_trainer(folder: Path, **kwargs: Any) -> L.Trainer:
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return L.Trainer(**{**options, **kwargs})


@pytest.mark.parametrize("workers", [0, 1])
def test_a_trainer_sets_the_epochs(tmp_path: Path, workers: int) -> None:
    model, module = Recorder(), make_module(num_workers=workers)
    plain_trainer(tmp_path, max_epochs=3).fit(model, module)
    per_epoch = 143 // GLOBAL_BATCH
    assert [(e, b) for e, b, _ in model.seen] == [(e, b) for e in range(3) for b in range(per_epoch)]
    expected = []
    for epoch in range(3):
        loader = make_module_loader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        expected += [labels.tolist() for _, labels in loader]
    assert [labels for _, _, labels in model.seen] == expected


def make_module_loader() -> TrainingLoader:
    module = make_module()
    module.setup()
    return module.train_dataloader()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_taken_up_from_a_checkpoint_sees_what_is_left(tmp_path: Path, workers: int) -> None:
    """An epoch has 8 batches: checkpoints in the first, at its end, in the second, and one step before the end."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    whole = Recorder()
    trainer = plain_trainer(tmp_path, max_epochs=2, callbacks=[saver], enable_checkpointing=True)
    trainer.fit(whole, make_module(num_workers=workers))
    for step in (3, 8, 11, 15):
        rest = Recorder()
        plain_trainer(tmp_path, max_epochs=2).fit(
            rest, make_module(num_workers=workers), ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=False
        )
        assert [labels for _, _, labels in rest.seen] == [labels for _, _, labels in whole.seen[step:]]
        assert rest.pixels == pytest.approx(whole.pixels[step:], abs=1e-3)


def test_a_checkpoint_of_an_epochs_end_goes_on_with_the_next(tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    saver = ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, filename="{epoch}")
    whole = Recorder()
    plain_trainer(tmp_path, max_epochs=3, callbacks=[saver], enable_checkpointing=True).fit(whole, make_module())
    rest = Recorder()
    plain_trainer(tmp_path, max_epochs=3).fit(
        rest, make_module(), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=False
    )
    assert rest.seen == whole.seen[8:]


def test_after_a_run_that_max_steps_ended_lightning_takes_the_epoch_for_done(tmp_path: Path) -> None:
    first, rest = Recorder(), Recorder()
    trainer = plain_trainer(tmp_path, max_epochs=3, max_steps=3)
    trainer.fit(first, make_module())
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    plain_trainer(tmp_path, max_epochs=3).fit(
        rest, make_module(), ckpt_path=tmp_path / "stopped.ckpt", weights_only=False
    )
    whole = Recorder()
    plain_trainer(tmp_path, max_epochs=3).fit(whole, make_module())
    assert rest.seen == whole.seen[8:]  # whole epochs, not the end of each


def test_overfit_batches_repeats_the_same_batches(tmp_path: Path) -> None:
    model = Recorder()
    plain_trainer(tmp_path, max_epochs=3, overfit_batches=2).fit(model, make_module())
    batches = [labels for _, _, labels in model.seen]
    assert len(batches) == 6
    assert batches[:2] == batches[2:4] == batches[4:]
    assert all(len(labels) == GLOBAL_BATCH for labels in batches)


def test_fitting_twice_starts_over(tmp_path: Path) -> None:
    module, first, second = make_module(), Recorder(), Recorder()
    plain_trainer(tmp_path, max_epochs=1).fit(first, module)
    plain_trainer(tmp_path, max_epochs=1).fit(second, module)
    assert first.seen == second.seen


def _fit(rank: int, world_size: int, options: dict[str, Any]) -> dict[str, Any]:
    model, module = Recorder(), make_module(world_size)
    trainer = make_trainer(rank, world_size, max_epochs=2, **options)
    trainer.fit(model, module)
    loader = trainer.train_dataloader
    assert isinstance(loader, TrainingLoader)
    return {"seen": model.seen, "shown": model.shown, "sampler": isinstance(loader.sampler, EpochSampler)}


@pytest.mark.parametrize("strategy", ["ddp", "pfc"])
def test_lightning_puts_no_sampler_of_its_own_over_the_ranks(ranks: RankPool, strategy: str) -> None:
    options = {"strategy": strategy, "use_distributed_sampler": True}
    (alone,) = ranks.run(1, _fit, options)
    parts = ranks.run(2, _fit, options)
    assert all(part["sampler"] for part in parts)
    for step, (epoch, batch, labels) in enumerate(alone["seen"]):
        together = [label for part in parts for label in part["seen"][step][2]]
        assert together == labels
        assert parts[1]["seen"][step][:2] == (epoch, batch)
    shown = [i for part in parts for i in part["shown"]]
    assert sorted(shown) == sorted(alone["shown"])


# --- with sharded heads -----------------------------------------------------------------------------------------------


class TwoHeads(L.LightningModule):
    """One backbone, and one head for each of two data sets whose labels have nothing to do with each other."""

    def __init__(self, classes: tuple[int, ...]) -> None:
        super().__init__()
        from lightning_pfc import PartialFC
        from lightning_pfc.losses import CosFace

        torch.manual_seed(0)
        self.backbone = nn.Linear(64, 8)
        self.heads = nn.ModuleList(
            PartialFC(embedding_dim=8, num_classes=c, loss=CosFace(scale=8.0), seed=i) for i, c in enumerate(classes)
        )
        self.losses: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels, part = batch
        embeddings = self.backbone(images.flatten(1))
        losses = [head(embeddings[part == i], labels[part == i]) for i, head in enumerate(self.heads)]
        loss: Tensor = torch.stack(losses).sum()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _two_heads(rank: int, world_size: int) -> list[float]:
    sources = {
        "faces": Synthetic(num_classes=9, images_per_class=12, image_size=8),
        "birds": Synthetic(num_classes=5, images_per_class=10, image_size=8, seed=1),
    }
    module = IdentityDataModule(Joint(sources=sources, labels="separate"), batch_size=16 // world_size)
    module.setup()
    model = TwoHeads(module.class_counts)
    make_trainer(rank, world_size, limit_val_batches=0).fit(model, module)
    return model.losses


def test_one_head_per_data_set_trains_alike_on_any_number_of_ranks(ranks: RankPool) -> None:
    (alone,) = ranks.run(1, _two_heads)
    assert len(alone) == 9
    for losses in ranks.run(2, _two_heads):
        assert losses == pytest.approx(alone, abs=1e-4)


def _broken_in_training(rank: int, world_size: int, folder: str) -> None:
    from lightning_pfc import PartialFCModule

    module = IdentityDataModule(Files(path=folder, check=0), batch_size=4)
    module.prepare_data()
    module.setup()
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(192, 8))
    model = PartialFCModule(backbone=backbone, num_classes=6, embedding_dim=8, input_size=(3, 8, 8), neck="linear")
    make_trainer(rank, world_size, limit_val_batches=0, max_epochs=2).fit(model, module)


def test_an_image_that_breaks_in_training_stops_every_rank(ranks: RankPool, tmp_path: Path) -> None:
    """One broken image is loaded by one rank; the other must not wait for it for ever."""
    from PIL import Image

    for c in range(6):
        (tmp_path / f"c{c}").mkdir()
        for i in range(4):
            Image.new("RGB", (8, 8), (40 * c, 10 * i, 0)).save(tmp_path / f"c{c}" / f"{i}.png")
    (tmp_path / "c4" / "2.png").write_bytes(b"no image")
    outcomes = ranks.outcomes(2, _broken_in_training, str(tmp_path), timeout=90)
    assert all(outcome.error is not None for outcome in outcomes)
    assert any("2.png" in str(outcome.error) and "cannot be decoded" in str(outcome.error) for outcome in outcomes)
