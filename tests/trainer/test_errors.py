"""A rank that fails, skips or strays ends the run on every rank, in bounded time, with the reason."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_pfc import PartialFC, PartialFCStrategy
from lightning_pfc.losses import CosFace
from tests.ranks import RankPool
from tests.trainer.world import TheirModule, make_loader, make_trainer

Batch = tuple[Tensor, Tensor]


class NoneOnOneRank(TheirModule):
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx == 2 and self.global_rank == 1 else loss


class NoneOnAll(TheirModule):
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx == 2 else loss


class RaisesBeforeTheHead(TheirModule):
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        if batch_idx == 2 and self.global_rank == 1:
            raise KeyError("a missing file")
        return super().training_step(batch, batch_idx)


class RaisesAfterTheHead(TheirModule):
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        loss = super().training_step(batch, batch_idx)
        if batch_idx == 2 and self.global_rank == 0:
            raise ValueError("a bad sample")
        return loss


class RaisesBetweenSteps(TheirModule):
    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if batch_idx == 2 and self.global_rank == 1:
            raise OSError("the disk has gone")


class RaisesInValidation(TheirModule):
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if self.global_rank == 1:
            raise OSError("an unreadable image")
        super().validation_step(batch, batch_idx)


class Stream(IterableDataset[Batch]):
    """Whole batches, one more on rank 1; of no length that could be compared beforehand."""

    def __init__(self, rank: int, batches: int) -> None:
        self.batches = list(make_loader(rank, 2))[: batches + rank]

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


class EndsEarlier(TheirModule):
    pass


class ValidatesLess(TheirModule):
    pass


class HeadOnRankZero(TheirModule):
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x = self.backbone(batch[0])
        if batch_idx < 2 or self.global_rank == 0:
            return self.head(x, batch[1])  # type: ignore[misc]
        return x.square().mean()


class WrongLabel(TheirModule):
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        if batch_idx == 1 and self.global_rank == 1:
            batch = (batch[0], batch[1] + 100)
        return super().training_step(batch, batch_idx)


KINDS = {
    cls.__name__: cls
    for cls in (
        NoneOnOneRank,
        NoneOnAll,
        RaisesBeforeTheHead,
        RaisesAfterTheHead,
        RaisesBetweenSteps,
        RaisesInValidation,
        HeadOnRankZero,
        WrongLabel,
        EndsEarlier,
        ValidatesLess,
    )
}


def run(rank: int, world_size: int, kind: str) -> tuple[str, float, int]:
    model = KINDS[kind]()
    trainer = make_trainer(rank, world_size, num_sanity_val_steps=0)
    loader = make_loader(rank, world_size)
    train: Any = DataLoader(Stream(rank, 3), batch_size=None) if kind == "EndsEarlier" else loader
    validation: Any = {"RaisesInValidation": loader, "ValidatesLess": DataLoader(Stream(rank, 2), batch_size=None)}
    start = time.monotonic()
    try:
        trainer.fit(model, train, validation.get(kind))
        text = ""
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
    return text, time.monotonic() - start, trainer.global_step


@pytest.mark.parametrize(
    ("kind", "on_the_failing_rank", "on_the_other", "failing"),
    [
        ("NoneOnOneRank", "training_step returned None on rank 1 only", "returned None on rank 1 only", 1),
        ("RaisesBeforeTheHead", "KeyError: 'a missing file'", "rank 1: KeyError: 'a missing file'", 1),
        ("RaisesAfterTheHead", "ValueError: a bad sample", "ValueError: rank 0: a bad sample", 0),
        ("RaisesBetweenSteps", "OSError: the disk has gone", "OSError: rank 1: the disk has gone", 1),
        ("RaisesInValidation", "OSError: an unreadable image", "OSError: rank 1: an unreadable image", 1),
        (
            "EndsEarlier",
            "data of rank 0 ended after 3 batch(es) of epoch 0, that of rank 1",
            "limit_train_batches=3",
            0,
        ),
        (
            "ValidatesLess",
            "have left step with each other",
            "is at 'the last batch of the validation'",
            1,
        ),
        ("HeadOnRankZero", "have left step with each other", "rank 1 is at 'training_step'", 0),
        ("WrongLabel", "labels", "ValueError: rank 1: labels", 1),
    ],
)
def test_every_rank_ends(ranks: RankPool, kind: str, on_the_failing_rank: str, on_the_other: str, failing: int) -> None:
    results = ranks.run(2, run, kind, timeout=100)
    assert on_the_failing_rank in results[failing][0]
    assert on_the_other in results[1 - failing][0]
    for _, seconds, _ in results:
        assert seconds < 60


def test_none_on_every_rank_is_lightnings_to_refuse(ranks: RankPool) -> None:
    for text, *_ in ranks.run(2, run, "NoneOnAll", timeout=60):
        assert "Skipping the `training_step` by returning None in distributed training is not supported" in text


class ValidatesAlone(TheirModule):
    """Its head takes no part in the validation."""

    seen = 0

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.seen += 1


def validate_alone(rank: int, world_size: int) -> tuple[int, int]:
    model, trainer = ValidatesAlone(), make_trainer(rank, world_size, num_sanity_val_steps=0)
    trainer.fit(model, make_loader(rank, world_size), DataLoader(Stream(rank, 2), batch_size=None))
    return model.seen, trainer.global_step


def test_a_validation_without_the_head_may_be_longer_on_one_rank(ranks: RankPool) -> None:
    assert ranks.run(2, validate_alone, timeout=100) == [(2, 6), (3, 6)]


def more_ranks_than_classes(rank: int, world_size: int) -> None:
    class Few(TheirModule):
        def make_head(self) -> PartialFC:
            return PartialFC(embedding_dim=6, num_classes=4, loss=CosFace())

    make_trainer(rank, world_size).fit(Few(late=True), make_loader(rank, world_size, sizes=(2, 2, 2)))


def test_more_ranks_than_classes_is_refused_on_every_rank(ranks: RankPool) -> None:
    for outcome in ranks.outcomes(3, more_ranks_than_classes, timeout=60):
        assert "use at most 2 ranks" in (outcome.error or "")


class HasMoreThanItUses(TheirModule):
    """An old classifier that nobody took out, or the half of a GAN whose turn it is not."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(6, 2)


def train_with_a_rest(rank: int, world_size: int, finds: bool) -> tuple[str | None, list[float]]:
    model, strategy = HasMoreThanItUses(), PartialFCStrategy(find_unused_parameters=finds)
    try:
        make_trainer(rank, world_size, strategy=strategy).fit(model, make_loader(rank, world_size))
    except RuntimeError as error:
        return str(error), model.losses
    return None, model.losses


@pytest.mark.parametrize("world_size", [1, 2])
def test_what_takes_no_part_in_the_loss_is_named_before_a_step_is_taken(ranks: RankPool, world_size: int) -> None:
    """Replicas went apart, and memory was blamed; or the way out was Lightning's, a strategy that is refused."""
    for text, losses in ranks.run(world_size, train_with_a_rest, False, timeout=60):
        assert text is not None
        assert text.startswith("classifier.weight, classifier.bias took no part in the loss of this step")
        assert "strategy=PartialFCStrategy(find_unused_parameters=True)" in text
        assert len(losses) == 1
    for text, losses in ranks.run(world_size, train_with_a_rest, True, timeout=60):
        assert (text, len(losses)) == (None, 6)
