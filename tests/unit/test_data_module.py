"""The data module and the synthetic source: what the data say, and what a user gets wrong."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from lightning_pfc.data import IdentityDataModule, RandomFlip, Synthetic, VerificationSet
from lightning_pfc.data.source import IdentityData
from lightning_pfc.data.synthetic import CyclicLabels


def opened(batch_size: int = 16, augment: Any = None, **kwargs: Any) -> IdentityDataModule:
    module = IdentityDataModule(Synthetic(**kwargs), batch_size=batch_size, augment=augment)
    module.prepare_data()
    module.setup()
    return module


def test_numbers_come_from_the_source() -> None:
    module = opened(num_classes=50, images_per_class=4, image_size=16, channels=3)
    assert (module.num_classes, module.num_images, module.input_size) == (50, 200, (3, 16, 16))
    images, labels = next(iter(module.train_dataloader()))
    assert images.shape == (16, 3, 16, 16)
    assert labels.dtype == torch.int64
    assert sorted(set(np.asarray(module.data.labels).tolist())) == list(range(50))


def test_synthetic_classes_can_be_told_apart_and_noise_makes_it_harder() -> None:
    scores = []
    for noise in (0.2, 2.0):
        module = opened(noise=noise, dim=36)
        images = torch.cat([x for x, _ in module.test_dataloader()[0]]).flatten(1)
        images = torch.nn.functional.normalize(images - images.mean(1, keepdim=True))
        pairs = module.verification_sets()["test"].pairs
        cosine = (images[pairs.first] * images[pairs.second]).sum(1)
        scores.append(float(cosine[pairs.same].mean() - cosine[~pairs.same].mean()))
    assert scores[0] > 0.9
    assert scores[1] < 0.4


def test_synthetic_test_identities_are_new_and_its_closed_set_shows_new_images_of_the_classes() -> None:
    module = opened(num_classes=50, images_per_class=4, image_size=8)
    ids = {
        name: set(module.verification_sets(stage)[name].identity.tolist())
        for stage, name in (("validate", "val"), ("test", "test"))
    }
    assert not ids["val"] & ids["test"]
    assert min(ids["val"] | ids["test"]) >= 50
    closed = opened(num_classes=50, images_per_class=4, image_size=8, task="closed", test_classes=50, noise=0.1)
    assert closed.task == "closed"
    assert not closed.verification_sets()
    test = closed.labelled_sets()["test"]
    train = closed.data.train.fetch(np.arange(50)).float().flatten(1)
    shown = test.images.fetch(np.arange(len(test.images))).float().flatten(1)
    nearest = torch.cdist(shown, train).argmin(1)
    assert (nearest.numpy() == np.asarray(test.labels)).mean() > 0.95
    assert not (torch.cdist(shown, train) == 0).any()


def test_a_hundred_million_classes_cost_nothing() -> None:
    module = opened(num_classes=10**8, images_per_class=10, image_size=8, test_classes=20, impostors=10)
    images, labels = next(iter(module.train_dataloader()))
    assert module.num_images == 10**9
    assert labels.max() > 10**6
    assert images.shape == (16, 1, 8, 8)


def test_cyclic_labels_are_an_array_when_asked() -> None:
    labels = CyclicLabels(7, 3)
    assert np.asarray(labels).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert labels[np.asarray([5, 6])].tolist() == [2, 0]
    assert len(labels) == 7


def test_epochs_seeds_and_positions_key_the_augmentation() -> None:
    def epoch(seed: int, number: int) -> torch.Tensor:
        module = IdentityDataModule(
            Synthetic(num_classes=4, images_per_class=4), batch_size=16, seed=seed, augment=RandomFlip()
        )
        module.setup()
        loader = module.train_dataloader()
        loader.sampler.set_epoch(number)
        images, labels = next(iter(loader))
        return images[labels.argsort(stable=True)].sum((1, 2))

    base = epoch(0, 0)
    assert torch.equal(base, epoch(0, 0))
    assert not torch.equal(base, epoch(1, 0))
    assert not torch.equal(base, epoch(0, 1))


def test_the_users_augmentation_replaces_that_of_the_source() -> None:
    def black(images: torch.Tensor, keys: Any) -> torch.Tensor:
        return torch.full(images.shape, -1.0)

    images, _ = next(iter(opened(augment=black).train_dataloader()))
    assert (images == -1).all()


def test_before_setup_there_is_an_error_that_says_so() -> None:
    module = IdentityDataModule(Synthetic())
    with pytest.raises(RuntimeError, match=r"prepare_data\(\) and setup\(\)"):
        _ = module.num_classes


def test_a_failing_preparation_raises_at_once_in_a_single_process() -> None:
    class Failing:
        def prepare(self) -> None:
            raise OSError("no such mirror")

        def open(self) -> IdentityData:
            raise AssertionError

    module = IdentityDataModule(Failing())
    for _ in range(2):  # a failure is no preparation
        with pytest.raises(OSError, match="no such mirror"):
            module.prepare_data()


def test_a_source_is_prepared_once_however_often_a_trainer_asks() -> None:
    class Counted(Synthetic):
        prepared: ClassVar[list[int]] = []

        def prepare(self) -> None:
            self.prepared.append(1)

    module = IdentityDataModule(Counted(num_classes=8, image_size=8))
    for _ in range(3):
        module.prepare_data()
        module.setup("fit")
    assert Counted.prepared == [1]


@pytest.mark.parametrize(
    ("argument", "value"),
    [("batch_size", 0), ("batch_size", 1.5), ("num_workers", -1), ("repeats", 0), ("eval_batch_size", 0)],
)
def test_arguments_of_the_module_are_checked(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{argument}={value}"):
        IdentityDataModule(Synthetic(), **{argument: value})


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("num_classes", 1),
        ("images_per_class", 0),
        ("image_size", 2),
        ("channels", 2),
        ("noise", -1.0),
        ("noise", float("nan")),
        ("task", "half"),
        ("test_classes", 5),
    ],
)
def test_arguments_of_the_synthetic_source_are_checked(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=argument):
        Synthetic(**{argument: value})


def test_a_stage_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="stage='fit'"):
        opened().verification_sets("fit")


def test_verification_items_index_their_own_images() -> None:
    module = opened(num_classes=50)
    verification = module.verification_sets("test")["test"]
    assert isinstance(verification, VerificationSet)
    assert int(verification.pairs.first.max()) < len(verification.images)
    assert len(verification.pairs) == len(verification.pairs.fold) == len(verification.pairs.same)
