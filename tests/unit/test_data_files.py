"""One's own images: folders, splits, and what is wrong with them said before training starts."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_pfc.data import Files, IdentityDataModule, LabelledSet, VerificationSet


def make_folder(root: Path, classes: int = 60, per_class: int = 5, size: tuple[int, int] = (12, 10)) -> Path:
    """Images whose mean tells the class."""
    rng = np.random.default_rng(0)
    for c in range(classes):
        folder = root / f"person {c:03d}"
        folder.mkdir(parents=True)
        for i in range(per_class):
            pixels = np.clip(4 * c + rng.integers(-2, 3, (*size, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.{'png' if i % 2 else 'jpg'}")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("faces") / "train")


def opened(path: Path, **kwargs: Any) -> IdentityDataModule:
    module = IdentityDataModule(Files(path=path, **kwargs), batch_size=8)
    module.prepare_data()
    module.setup()
    return module


def test_numbers_come_from_the_data(folder: Path) -> None:
    module = opened(folder)
    assert (module.num_classes, module.num_images, module.input_size) == (60, 300, (3, 12, 10))
    assert module.task == "open"
    assert module.data.class_names is not None
    assert module.data.class_names[59] == "person 059"
    images, labels = next(iter(module.train_dataloader()))
    assert images.shape == (8, 3, 12, 10)
    assert images.dtype == torch.float32
    means = (images.mean((1, 2, 3)) + 1) * 127.5
    torch.testing.assert_close(means, 4.0 * labels, rtol=0, atol=4.0)


def test_open_shares_set_identities_aside(folder: Path) -> None:
    module = opened(folder, val_share=0.35, test_share=0.35, impostors=500)
    assert module.num_classes == 18
    assert module.num_images == 90
    val, test = module.verification_sets("validate")["val"], module.verification_sets("test")["test"]
    assert len(val.images) == len(test.images) == 105
    assert int((~test.pairs.same).sum()) >= 500

    def grey_of(images: Any) -> set[int]:
        return {round(float(m) / 4) for m in images.fetch(np.arange(len(images))).float().mean((1, 2, 3))}

    seen = [grey_of(module.data.train), grey_of(val.images), grey_of(test.images)]
    assert sum(len(s) for s in seen) == 60
    assert len(set.union(*seen)) == 60
    again = opened(folder, val_share=0.35, test_share=0.35, impostors=500)
    assert again.verification_sets()["test"].pairs.first.equal(test.pairs.first)


def test_closed_shares_set_images_aside_and_every_class_keeps_one(folder: Path) -> None:
    module = opened(folder, task="closed", val_share=0.2, test_share=0.4)
    assert module.num_classes == 60
    assert module.num_images == 60 * 2
    val, test = module.labelled_sets("validate")["val"], module.labelled_sets("test")["test"]
    assert isinstance(val, LabelledSet)
    assert (len(val.images), len(test.images)) == (60, 120)
    means = test.images.fetch(np.arange(120)).float().mean((1, 2, 3))
    torch.testing.assert_close(means, 4.0 * torch.as_tensor(np.asarray(test.labels)), rtol=0, atol=4.0)
    greedy = opened(folder, task="closed", test_share=0.99)
    assert greedy.num_images == 60


def test_evaluation_images_from_paths_of_their_own(folder: Path, tmp_path: Path) -> None:
    other = make_folder(tmp_path / "other", classes=30, per_class=2)
    module = opened(folder, validation=other, test=other, impostors=100)
    assert module.num_classes == 60
    assert isinstance(module.verification_sets("validate")["val"], VerificationSet)
    closed = opened(folder, task="closed", test=other)
    assert sorted(set(np.asarray(closed.labelled_sets()["test"].labels).tolist())) == list(range(30))
    (other / "stranger").mkdir()
    (other / "person 000" / "0.jpg").rename(other / "stranger" / "0.jpg")
    with pytest.raises(ValueError, match=r"1 classes that are not trained on, such as 'stranger'.*task=\"open\""):
        opened(folder, task="closed", test=other)


def test_workers_and_pickles_read_the_same(folder: Path) -> None:
    module = opened(folder)
    alone = list(module.train_dataloader())
    module.num_workers = 2
    for (x, y), (a, b) in zip(module.train_dataloader(), alone, strict=True):
        assert torch.equal(y, b)
        assert torch.equal(x, a)
    again = pickle.loads(pickle.dumps(module.data.train))
    assert torch.equal(again.fetch(np.arange(4)), module.data.train.fetch(np.arange(4)))


def test_a_missing_folder_is_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"path='.*nowhere'.*sub-folder of images per identity"):
        opened(tmp_path / "nowhere")


def test_a_missing_evaluation_folder_is_found_before_training(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"validation='.*nowhere'"):
        IdentityDataModule(Files(path=folder, validation=tmp_path / "nowhere")).prepare_data()


def test_an_empty_class_folder_is_named_with_the_way_out(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "a", classes=3)
    (root / "nobody").mkdir()
    with pytest.raises(ValueError, match=r"1 class folders hold no image, such as 'nobody'.*empty_classes='skip'"):
        IdentityDataModule(Files(path=root)).prepare_data()
    assert opened(root, empty_classes="skip").num_classes == 3


def test_an_empty_folder_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no folder in it holds an image"):
        opened(tmp_path / "empty")


@pytest.mark.parametrize("damage", ["truncate", "text", "empty"])
def test_a_broken_image_stops_the_run_before_it_starts(tmp_path: Path, damage: str) -> None:
    root = make_folder(tmp_path / "a", classes=4)
    victim = root / "person 002" / "3.png"
    whole = victim.read_bytes()
    victim.write_bytes({"truncate": whole[: len(whole) // 2], "text": b"no image", "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"person 002.3\.png.*cannot be decoded"):
        IdentityDataModule(Files(path=root)).prepare_data()
    IdentityDataModule(Files(path=root, check=0)).prepare_data()  # who does not ask is not told
    skipping = opened(root, on_broken="skip", max_broken=0.1)
    assert sum(len(y) for _, y in skipping.train_dataloader()) == 16


def test_another_size_is_refused_or_fitted(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "a", classes=4)
    Image.fromarray(np.full((40, 20, 3), 9, np.uint8)).save(root / "person 001" / "1.png")
    with pytest.raises(ValueError, match=r"20 x 40 pixels instead of 10 x 12"):
        IdentityDataModule(Files(path=root)).prepare_data()
    assert opened(root, fit="crop").input_size == (3, 12, 10)
    assert opened(root, fit="stretch", image_size=16).input_size == (3, 16, 16)
    assert opened(root, fit="crop", image_size=(8, 6), channels=1).input_size == (1, 8, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val_share": 1.0}, "val_share=1.0"),
        ({"val_share": 0.6, "test_share": 0.4}, "leave nothing to train on"),
        ({"val_share": 0.1, "validation": "x"}, "exclude each other"),
        ({"task": "both"}, "task='both'"),
        ({"check": -1}, "check=-1"),
        ({"empty_classes": "maybe"}, "empty_classes='maybe'"),
    ],
)
def test_arguments_without_meaning_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Files(path="anywhere", **arguments)


def test_a_list_is_not_read_as_a_folder(tmp_path: Path) -> None:
    """The pictures of a list lie in one folder, which is no identity; and a file is no folder, though it is there."""
    root = make_folder(tmp_path / "set" / "images", classes=2)
    (tmp_path / "set" / "list.tsv").write_text("images/person 000/0.jpg\ta\nimages/person 001/0.jpg\tb\n")
    with pytest.raises(
        ValueError, match=r"path=.*below images, which would be one identity.*Take data=list with .*list"
    ):
        opened(root.parent)
    with pytest.raises(ValueError, match=r"path=.*list.tsv' is a file.*Take data=list, or give the folder"):
        opened(root.parent / "list.tsv", format="folder")
    (tmp_path / "set" / "list.tsv").rename(tmp_path / "list.tsv")
    assert opened(root.parent, val_share=0, test_share=0, task="closed").num_classes == 1
