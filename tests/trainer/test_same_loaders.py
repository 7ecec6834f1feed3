"""Data loaders that differ between two ranks: every rank is told, and none waits for the other."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader

from tests.ranks import RankPool
from tests.trainer.world import Steps, TheirModule, make_loader, make_trainer

Batch = tuple[Tensor, Tensor]


class WithoutHead(TheirModule):
    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.backbone(batch[0]).sum(), sync_dist=True)

    test_step = validation_step


class WithHead(TheirModule):
    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)

    test_step = validation_step


class Refuses(WithHead):
    """Its own loaders, of which one cannot be made on rank 1."""

    def val_dataloader(self) -> Any:
        if self.global_rank == 1:
            raise OSError("the disk has gone")
        return make_loader(0, 2)


def loaders(kind: str, rank: int) -> Any:
    """Of a rank; of two that differ, the second one's come second."""

    def of(steps: int) -> DataLoader[Any]:
        return make_loader(rank, 2, steps) if steps else DataLoader(Steps([]), batch_size=None)

    cases: dict[str, list[Any]] = {
        "same": [of(3), of(3)],
        "empty": [of(3), of(0)],
        "empty on rank 0": [of(0), of(3)],
        "second empty": [[of(3), of(2)], [of(3), of(0)]],
        "none": [of(3), None],
        "number": [of(3), [of(3), of(3)]],
        "number in a dict": [{"a": of(3), "b": of(3)}, {"a": of(3)}],
        "combined": [of(3), CombinedLoader([of(3), of(3)], "sequential")],
        "lengths": [[of(3), of(2)], [of(2), of(3)]],
        "own": [None, None],
    }
    return cases[kind][rank]


def run(rank: int, world_size: int, model: str, stage: str, kind: str, sanity: int) -> str:
    trainer = make_trainer(rank, world_size, num_sanity_val_steps=sanity)
    train = loaders(kind, rank) if stage == "train" else make_loader(rank, world_size)
    module = {"WithoutHead": WithoutHead, "WithHead": WithHead, "Refuses": Refuses}[model]()
    try:
        if stage in ("train", "fit"):
            trainer.fit(module, train, loaders("same" if stage == "train" else kind, rank))
        else:
            getattr(trainer, stage)(module, loaders(kind, rank), verbose=False)
    except (RuntimeError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


EMPTY = "loader {} of rank {} has no batch, and those of the other ranks have some"


@pytest.mark.parametrize(
    ("stage", "kind", "said"),
    [
        ("fit", "empty", f"val_dataloader: {EMPTY.format(0, 1)}"),
        ("fit", "empty on rank 0", f"val_dataloader: {EMPTY.format(0, 0)}"),
        ("fit", "second empty", f"val_dataloader: {EMPTY.format(1, 1)}"),
        ("fit", "none", "validation: rank 0 runs one, rank 1 runs none"),
        ("fit", "number", "val_dataloader: rank 0 has 1, rank 1 has 2"),
        ("fit", "number in a dict", "val_dataloader: rank 0 has 2, rank 1 has 1"),
        ("train", "number", "train_dataloader: rank 0 has 1, rank 1 has 2"),
        ("train", "combined", "train_dataloader: rank 0 has 1, rank 1 has 2"),
        ("train", "empty", f"train_dataloader: {EMPTY.format(0, 1)}"),
        ("validate", "number", "val_dataloader: rank 0 has 1, rank 1 has 2"),
        ("test", "empty", f"test_dataloader: {EMPTY.format(0, 1)}"),
    ],
)
@pytest.mark.parametrize("sanity", [0, 2])
def test_every_rank_is_told(ranks: RankPool, stage: str, kind: str, said: str, sanity: int) -> None:
    for model in ("WithoutHead", "WithHead"):
        for text in ranks.run(2, run, model, stage, kind, sanity, timeout=60):
            assert text.startswith(f"RuntimeError: {said}"), text
            assert "Give every rank" in text


def test_a_loader_that_cannot_be_made_on_one_rank(ranks: RankPool) -> None:
    found = ranks.run(2, run, "Refuses", "fit", "own", 0, timeout=60)
    assert found == ["OSError: rank 1: the disk has gone", "OSError: the disk has gone"]


def test_lengths_that_differ_matter_where_the_head_is_called(ranks: RankPool) -> None:
    assert ranks.run(2, run, "WithoutHead", "validate", "lengths", 0, timeout=60) == ["", ""]
    for text in ranks.run(2, run, "WithHead", "validate", "lengths", 0, timeout=60):
        assert "have left step with each other" in text
        assert "rank 1 is at 'the last batch of the validation'" in text


def test_the_same_loaders_run(ranks: RankPool) -> None:
    for model in ("WithoutHead", "WithHead"):
        assert ranks.run(2, run, model, "fit", "same", 2, timeout=60) == ["", ""]
