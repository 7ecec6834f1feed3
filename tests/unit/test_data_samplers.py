"""Class-balanced, P x K and mixed orders, on any number of ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lightning_pfc.data import (
    ClassBalanced,
    IdentityDataModule,
    IdentityGroups,
    Joint,
    Mixed,
    Shuffled,
    Synthetic,
)
from lightning_pfc.data.batches import BatchNumber, BatchPlan
from lightning_pfc.data.orders import ClassOrder, MixedOrder, Order, ShuffledOrder


def uneven_labels() -> NDArray[np.int64]:
    """13 classes of 1 to 40 images, shuffled."""
    labels = np.repeat(np.arange(13), 1 + 3 * np.arange(13))
    return np.random.default_rng(0).permutation(labels)


def whole(order: Order, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    draws = order.draws(epoch, 0, order.length)
    return draws.position, draws.repeat


def test_every_class_is_drawn_as_often_as_every_other() -> None:
    labels = uneven_labels()
    order = ClassOrder(labels, 13, seed=4)
    position, _ = whole(order, 2)
    counts = np.bincount(labels[position], minlength=13)
    assert len(set(counts.tolist())) == 1
    assert order.length == 13 * counts[0]
    assert abs(order.length - len(labels)) <= 13
    # Round after round, each in an order of its own.
    first, second = labels[position[:13]], labels[position[13:26]]
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(13))
    assert first.tolist() != second.tolist()


def test_a_class_uses_its_images_equally_and_goes_on_from_epoch_to_epoch() -> None:
    labels = uneven_labels()
    order = ClassOrder(labels, 13, seed=4)
    drawn = np.concatenate([whole(order, epoch)[0] for epoch in range(8)])
    per_image = np.bincount(drawn, minlength=len(labels))
    for c in range(13):
        assert np.ptp(per_image[labels == c]) <= 1


def test_a_repeat_within_an_epoch_is_counted() -> None:
    labels = uneven_labels()
    position, repeat = whole(ClassOrder(labels, 13, seed=4), 1)
    seen: dict[int, int] = {}
    for image, count in zip(position.tolist(), repeat.tolist(), strict=True):
        assert count == seen.get(image, 0)
        seen[image] = count + 1


def test_stretches_agree_with_the_whole() -> None:
    labels = uneven_labels()
    orders: list[Order] = [
        ShuffledOrder(len(labels), 1, 2),
        ClassOrder(labels, 13, images=2, identities=4, seed=1),
        MixedOrder([ShuffledOrder(30, 1), ShuffledOrder(7, 2)], [0, 30], [0.5, 0.5]),
    ]
    for order in orders:
        position, repeat = whole(order, 3)
        for start, stop in ((0, 5), (7, 8), (order.length - 3, order.length)):
            draws = order.draws(3, start, stop)
            assert draws.position.tolist() == position[start:stop].tolist()
            assert draws.repeat.tolist() == repeat[start:stop].tolist()


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_batch_holds_p_identities_with_k_images_each(world_size: int) -> None:
    """P = 8 identities of K = 3 images: on any number of ranks, none twice in a global batch, none across ranks."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(50), 7))
    plans = [
        BatchPlan(
            order=ClassOrder(labels, 50, images=3, identities=8, seed=9),
            batch_size=24 // world_size,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    left_out: set[int] = set(range(50))
    for batch in range(len(plans[0])):
        parts = [plan.draws(BatchNumber(1, batch)).position for plan in plans]
        classes = [set(labels[part].tolist()) for part in parts]
        assert all(len(c) == 8 // world_size for c in classes)
        assert len(set.union(*classes)) == 8
        together = np.concatenate(parts)
        assert len(set(together.tolist())) == 24
        assert (np.bincount(labels[together])[sorted(set.union(*classes))] == 3).all()
        left_out -= set.union(*classes)
    assert not left_out  # who is left out changes from round to round


def test_a_small_class_repeats_its_images_with_other_augmentation() -> None:
    labels = np.repeat(np.arange(4), [1, 2, 3, 4])
    draws = ClassOrder(labels, 4, images=4, identities=2).draws(0, 0, 16)
    of_first = labels[draws.position] == 0
    assert int(of_first.sum()) == 4
    assert len({(p, r) for p, r in zip(draws.position.tolist(), draws.repeat.tolist(), strict=True)}) == 16


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"images": 0}, "images=0"),
        ({"identities": 14}, "identities=14 in a batch is more than the 13 classes"),
    ],
)
def test_arguments_without_meaning_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassOrder(uneven_labels(), 13, **kwargs)


def test_a_class_without_images_is_named() -> None:
    with pytest.raises(ValueError, match=r"class 2 has no image.*leave out data\.classes_of"):
        ClassOrder(np.asarray([0, 1, 3]), 4)
    with pytest.raises(ValueError, match="label 3 is outside"):
        ClassOrder(np.asarray([0, 1, 2, 3]), 3)


# --- several data sets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", [None, (0.5, 0.5), (0.9, 0.1), (1, 3)])
def test_every_stretch_holds_the_shares(shares: tuple[float, float] | None) -> None:
    order = MixedOrder([ShuffledOrder(300, 1), ShuffledOrder(100, 2)], [0, 300], shares)
    wanted = np.asarray(shares or (300, 100), dtype=float)
    wanted /= wanted.sum()
    position, _ = whole(order, 0)
    assert len(position) == 400
    for size in (20, 50):
        for start in range(0, 400 - size, size):
            second = int((position[start : start + size] >= 300).sum())
            assert abs(second - wanted[1] * size) <= 1.01


def test_each_data_set_goes_through_epochs_of_its_own() -> None:
    order = MixedOrder([ShuffledOrder(300, 1), ShuffledOrder(100, 2)], [0, 300], [0.5, 0.5], length=400)
    drawn, keys = [], set()
    for epoch in range(3):
        position, repeat = whole(order, epoch)
        drawn += position[position >= 300].tolist()
        keys |= {(epoch, p, r) for p, r in zip(position.tolist(), repeat.tolist(), strict=True)}
    assert len(keys) == 1200  # no image twice with the same augmentation
    for start in range(0, 600, 100):
        assert sorted(drawn[start : start + 100]) == list(range(300, 400))


def test_shares_without_meaning_are_refused() -> None:
    orders = [ShuffledOrder(3), ShuffledOrder(3)]
    with pytest.raises(ValueError, match="above 0"):
        MixedOrder(orders, [0, 3], [1, 0])
    with pytest.raises(ValueError, match="must be as many"):
        MixedOrder(orders, [0], [1, 1])
    with pytest.raises(ValueError, match="never have its turn"):
        MixedOrder(orders, [0, 3], [1, 1e-9])


def joint(**kwargs: Any) -> IdentityDataModule:
    sources = {
        "faces": Synthetic(num_classes=10, images_per_class=12, image_size=8, test_classes=20, impostors=30),
        "birds": Synthetic(num_classes=4, images_per_class=20, image_size=8, test_classes=20, impostors=30, seed=1),
    }
    labels = kwargs.pop("labels", "joint")
    module = IdentityDataModule(Joint(sources=sources, labels=labels), batch_size=10, **kwargs)
    module.prepare_data()
    module.setup()
    return module


def test_joint_labels_are_behind_each_other() -> None:
    module = joint()
    assert (module.num_classes, module.num_images, module.class_counts) == (14, 200, (10, 4))
    labels = np.concatenate([y.numpy() for _, y in module.train_dataloader()])
    counts = np.bincount(labels, minlength=14)
    assert counts[:10].sum() == 120
    assert (counts[:10] == 12).all()
    assert (counts[10:] == 20).all()
    assert list(module.verification_sets()) == ["faces_test", "birds_test"]
    images, labels_of_first = next(iter(module.train_dataloader()))
    alone = IdentityDataModule(Synthetic(num_classes=4, images_per_class=20, image_size=8, seed=1), augment="none")
    alone.setup()
    from_birds = module.data.train.fetch(np.asarray([120, 199]))
    assert from_birds.equal(alone.data.train.fetch(np.asarray([0, 79])))
    assert images.shape == (10, 1, 8, 8)
    assert len(labels_of_first) == 10


def test_separate_labels_come_with_the_number_of_their_part() -> None:
    module = joint(labels="separate", sampler=Mixed(shares={"faces": 0.5, "birds": 0.5}))
    for images, labels, part in module.train_dataloader():
        assert images.shape == (10, 1, 8, 8)
        assert sorted(part.tolist()) == [0] * 5 + [1] * 5
        assert labels[part == 0].max() < 10
        assert labels[part == 1].max() < 4
        assert labels.min() >= 0


def test_shares_name_the_data_sets() -> None:
    with pytest.raises(ValueError, match=r"shares=.*cats.*must name the data sets \['faces', 'birds'\]"):
        joint(sampler=Mixed(shares={"cats": 1.0})).train_dataloader()


def test_data_sets_must_fit_together() -> None:
    small = Synthetic(num_classes=4, image_size=8)
    for other, message in (
        (Synthetic(num_classes=4, image_size=16), "different sizes"),
        (Synthetic(num_classes=4, image_size=8, task="closed"), "one task"),
    ):
        with pytest.raises(ValueError, match=message):
            Joint(sources={"a": small, "b": other}).open()
    with pytest.raises(ValueError, match="at least one source"):
        Joint(sources={})
    with pytest.raises(ValueError, match="labels='both'"):
        Joint(sources={"a": small}, labels="both")  # type: ignore[arg-type]


# --- as the data module's option --------------------------------------------------------------------------------------


def opened(**kwargs: Any) -> IdentityDataModule:
    module = IdentityDataModule(Synthetic(num_classes=24, images_per_class=9, image_size=8), **kwargs)
    module.setup()
    return module


def test_samplers_go_by_name_or_as_objects() -> None:
    balanced = opened(batch_size=24, sampler="class_balanced")
    for _, labels in balanced.train_dataloader():
        assert sorted(labels.tolist()) == list(range(24))
    groups = opened(batch_size=12, sampler=IdentityGroups(images=3))
    for _, labels in groups.train_dataloader():
        assert (np.unique(labels.numpy(), return_counts=True)[1] == 3).all()
        assert (labels.reshape(4, 3) == labels.reshape(4, 3)[:, :1]).all()
    from_config = opened(batch_size=12, sampler={"name": "identity_groups", "images": 3})
    assert from_config.sampler == IdentityGroups(images=3)
    assert len(opened(batch_size=8, sampler=Shuffled(repeats=2)).train_dataloader()) == 27
    assert opened(sampler=ClassBalanced(length=48), batch_size=24).order().length == 48


def test_a_batch_that_would_divide_an_identity_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size=10 is no multiple of images=4 per identity; use 8"):
        opened(batch_size=10, sampler="identity_groups").train_dataloader()


def test_samplers_that_do_not_exist_or_contradict_are_refused() -> None:
    with pytest.raises(
        ValueError, match="sampler='random' is not one of class_balanced, identity_groups, mixed, shuffled"
    ):
        opened(sampler="random")
    with pytest.raises(TypeError, match="sampler 'identity_groups' takes images, length, not pictures"):
        opened(sampler={"name": "identity_groups", "pictures": 3})
    with pytest.raises(ValueError, match=r"repeats=2 belongs to the default sampler"):
        opened(sampler="class_balanced", repeats=2)
