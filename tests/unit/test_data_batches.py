"""Orders and batches: who gets which image when."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lightning_pfc.data import IdentityDataModule, Synthetic
from lightning_pfc.data.augment import RandomFlip
from lightning_pfc.data.batches import BatchNumber, BatchPlan, TrainingBatches, TrainingLoader
from lightning_pfc.data.camera import CameraAugmentation, to_float
from lightning_pfc.data.evaluation_batches import EvaluationBatches, evaluation_loader
from lightning_pfc.data.images import ArrayImages
from lightning_pfc.data.orders import ShuffledOrder


def make_batches(
    number: int = 50, batch_size: int = 4, rank: int = 0, world_size: int = 1, **kwargs: Any
) -> TrainingBatches:
    rng = np.random.default_rng(0)
    images = ArrayImages(rng.integers(0, 256, (number, 9, 11), dtype=np.uint8))
    order = kwargs.pop("order", None) or ShuffledOrder(number, seed=3)
    plan = BatchPlan(order=order, batch_size=batch_size, rank=rank, world_size=world_size, **kwargs)
    return TrainingBatches(images, np.arange(number), plan, CameraAugmentation(), seed=5)


def epoch_of(loader: TrainingLoader, epoch: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_an_epoch_draws_every_image_once_and_another_epoch_in_another_order() -> None:
    order = ShuffledOrder(101, seed=1)
    first, second = (order.draws(epoch, 0, 101).position for epoch in (0, 1))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(101))
    assert first.tolist() != second.tolist()
    assert first.tolist() == ShuffledOrder(101, seed=1).draws(0, 0, 101).position.tolist()
    assert first.tolist() != ShuffledOrder(101, seed=2).draws(0, 0, 101).position.tolist()


def test_repeated_augmentation_repeats_in_place_and_keeps_the_epoch_as_long() -> None:
    order = ShuffledOrder(10, seed=1, repeats=3)
    draws = order.draws(0, 0, order.length)
    assert order.length == 9
    assert draws.repeat.tolist() == [0, 1, 2] * 3
    assert (draws.position.reshape(3, 3) == draws.position.reshape(3, 3)[:, :1]).all()
    assert len(set(draws.position.tolist())) == 3


@pytest.mark.parametrize("repeats", [1, 2])
def test_ranks_share_the_global_batches_of_one_rank(repeats: int) -> None:
    """At an equal global batch, the images of a step and their pixels are the same on 1, 2 and 4 ranks."""
    order = ShuffledOrder(50, seed=3, repeats=repeats)
    whole = make_batches(batch_size=8, order=order)
    for world_size in (2, 4):
        parts = [
            make_batches(
                batch_size=8 // world_size, rank=rank, world_size=world_size, order=ShuffledOrder(50, 3, repeats)
            )
            for rank in range(world_size)
        ]
        assert {len(p) for p in parts} == {len(whole)}
        for batch in range(len(whole)):
            images, labels = whole[BatchNumber(2, batch)]
            pieces = [part[BatchNumber(2, batch)] for part in parts]
            assert torch.equal(torch.cat([y for _, y in pieces]), labels)
            torch.testing.assert_close(torch.cat([x for x, _ in pieces]), images, rtol=0, atol=1e-6)


def test_repeats_of_an_image_differ() -> None:
    batches = make_batches(batch_size=4, order=ShuffledOrder(50, seed=3, repeats=2))
    images, labels = batches[BatchNumber(0, 0)]
    assert labels[0] == labels[1]
    assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_without_drop_last_the_rest_makes_a_smaller_batch(world_size: int) -> None:
    plans = [
        BatchPlan(order=ShuffledOrder(50), batch_size=4, rank=r, world_size=world_size, drop_last=False)
        for r in range(world_size)
    ]
    seen: list[int] = []
    for batch in range(len(plans[0])):
        parts = [plan.draws(BatchNumber(0, batch)).position for plan in plans]
        sizes = [len(p) for p in parts]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1
        seen += np.concatenate(parts).tolist()
    left_out = 50 % (4 * world_size) if 50 % (4 * world_size) < world_size else 0
    assert len(seen) == len(set(seen)) == 50 - left_out


def test_with_drop_last_all_batches_are_full() -> None:
    batches = make_batches(number=50, batch_size=8, drop_last=True)
    assert len(batches) == 6
    assert all(len(y) == 8 for _, y in epoch_of(TrainingLoader(batches)))


def test_a_batch_larger_than_the_data_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"batch_size=30 on 2 rank\(s\) is a global batch of 60.*use at most 25"):
        BatchPlan(order=ShuffledOrder(50), batch_size=30, rank=0, world_size=2)
    with pytest.raises(ValueError, match="batch_size=0"):
        BatchPlan(order=ShuffledOrder(50), batch_size=0)
    with pytest.raises(ValueError, match="rank=2"):
        BatchPlan(order=ShuffledOrder(50), batch_size=1, rank=2, world_size=2)


def test_numbers_of_workers_do_not_matter() -> None:
    alone = epoch_of(TrainingLoader(make_batches()), epoch=3)
    for workers in (1, 2):
        others = epoch_of(TrainingLoader(make_batches(), num_workers=workers), epoch=3)
        assert len(others) == len(alone)
        for (x, y), (a, b) in zip(others, alone, strict=True):
            assert torch.equal(y, b)
            torch.testing.assert_close(x, a, rtol=0, atol=1e-6)


def test_persistent_workers_follow_the_epoch() -> None:
    loader = TrainingLoader(make_batches(), num_workers=1, persistent_workers=True)
    reference = TrainingLoader(make_batches())
    for epoch in (0, 1, 5):
        for (_, y), (_, b) in zip(epoch_of(loader, epoch), epoch_of(reference, epoch), strict=True):
            assert torch.equal(y, b)


def test_spawned_workers_map_the_file_instead_of_being_sent_it(tmp_path: Any) -> None:
    import pickle

    array = np.random.default_rng(0).integers(0, 256, (4000, 9, 11), dtype=np.uint8)
    np.save(tmp_path / "images.npy", array)
    table = ArrayImages(np.load(tmp_path / "images.npy", mmap_mode="r"), np.asarray([5, 7, 3999]))
    sent = pickle.dumps(table)
    assert len(sent) < 2000
    again = pickle.loads(sent)
    assert isinstance(again.array, np.memmap)
    assert torch.equal(again.fetch(np.asarray([0, 2])), torch.from_numpy(array[[5, 3999]])[:, None])
    in_memory = pickle.loads(pickle.dumps(ArrayImages(array)))
    assert torch.equal(in_memory.fetch(np.asarray([8])), torch.from_numpy(array[[8]])[:, None])


def test_a_spawned_worker_loads_the_same(tmp_path: Any) -> None:
    array = np.random.default_rng(0).integers(0, 256, (40, 9, 11), dtype=np.uint8)
    np.save(tmp_path / "images.npy", array)
    images = ArrayImages(np.load(tmp_path / "images.npy", mmap_mode="r"))
    batches = TrainingBatches(images, np.arange(40), BatchPlan(order=ShuffledOrder(40), batch_size=20), RandomFlip())
    spawned = list(TrainingLoader(batches, num_workers=1, multiprocessing_context="spawn"))
    for (x, y), (a, b) in zip(spawned, TrainingLoader(batches), strict=True):
        assert torch.equal(x, a)
        assert torch.equal(y, b)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_where_it_stopped(workers: int) -> None:
    whole = [y for _, y in epoch_of(TrainingLoader(make_batches()), epoch=4)]
    loader = TrainingLoader(make_batches(), num_workers=workers)
    loader.sampler.set_epoch(4)
    iterator = iter(loader)
    before = [next(iterator)[1] for _ in range(5)]
    state = loader.state_dict()
    assert state == {"epoch": 4, "batch": 5, "length": 12}
    del iterator
    resumed = TrainingLoader(make_batches(), num_workers=workers)
    resumed.load_state_dict(state)
    after = [y for _, y in resumed]
    assert torch.equal(torch.stack(before + after), torch.stack(whole))
    assert resumed.state_dict() == {"epoch": 5, "batch": 0, "length": 12}
    # The epoch after that is a whole one.
    assert len(epoch_of(resumed, epoch=5)) == 12


def test_the_position_of_another_batch_size_is_refused_but_not_at_the_end_of_an_epoch() -> None:
    loader = TrainingLoader(make_batches())
    with pytest.raises(ValueError, match="after batch 5 of 99, but an epoch has 12"):
        loader.load_state_dict({"epoch": 1, "batch": 5, "length": 99})
    loader.load_state_dict({"epoch": 1, "batch": 0, "length": 99})
    assert loader.state_dict()["epoch"] == 1


@pytest.mark.parametrize(
    ("word", "changed"),
    [
        ("data.seed=0, and this run has 3", {"seed": 3}),
        ("global batch (data.batch_size times ranks)=16, and this run has 15", {"batch_size": 15}),
        (
            "data.sampler=Shuffled(repeats=1), and this run has ClassBalanced",
            {"sampler": "class_balanced"},
        ),
        ("data.drop_last=True, and this run has False", {"drop_last": False}),
        ("training images=192, and this run has 196", {"images": 196}),
    ],
)
def test_an_epoch_that_was_left_in_the_middle_goes_on_with_its_own_batches(word: str, changed: dict[str, Any]) -> None:
    """All of these have epochs of twelve batches; from one epoch to the next they may change."""

    def loader(images: int = 192, **words: Any) -> TrainingLoader:
        source = Synthetic(num_classes=images // 4, images_per_class=4, image_size=8)
        data = IdentityDataModule(source, **{"batch_size": 16, **words})
        data.setup()
        assert len(data.train_dataloader()) == 12
        return data.train_dataloader()

    state = {**loader().state_dict(), "epoch": 2, "batch": 5}
    loader().load_state_dict(state)
    with pytest.raises(ValueError, match=f"after batch 5 of 12 of an epoch with {re.escape(word)}"):
        loader(**changed).load_state_dict(state)
    loader(**changed).load_state_dict({**state, "batch": 0})


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("number", [4, 10, 23])
def test_evaluation_shows_every_image_once_in_equally_many_batches(world_size: int, number: int) -> None:
    array = np.arange(number * 4, dtype=np.uint8).reshape(number, 2, 2)
    seen: list[int] = []
    counts: set[int] = set()
    for rank in range(world_size):
        batches = EvaluationBatches(ArrayImages(array), None, 3, rank, world_size)
        loader = evaluation_loader(batches)
        got = list(loader)
        counts.add(len(got))
        for images, index in got:
            assert 1 <= len(index) <= 3
            assert torch.equal(images, to_float(torch.from_numpy(array[index.numpy()][:, None])))
            seen += index.tolist()
    assert sorted(seen) == list(range(number))
    assert len(counts) == 1


def test_evaluation_yields_labels_where_there_are_labels() -> None:
    labels: NDArray[np.int64] = np.asarray([5, 6, 7, 8])
    batches = EvaluationBatches(ArrayImages(np.zeros((4, 2, 2), np.uint8)), labels, 2)
    assert [y.tolist() for _, y in evaluation_loader(batches)] == [[5, 6], [7, 8]]


def test_evaluation_on_more_ranks_than_images_is_refused() -> None:
    with pytest.raises(ValueError, match="3 images cannot be shared by 4 ranks"):
        EvaluationBatches(ArrayImages(np.zeros((3, 2, 2), np.uint8)), None, 2, 0, 4)


def test_images_must_be_bytes() -> None:
    with pytest.raises(ValueError, match="uint8"):
        ArrayImages(np.zeros((3, 2, 2), np.float32))  # type: ignore[arg-type]
