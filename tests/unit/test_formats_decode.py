"""Decoding: exact pictures, and damage that stops the run or is counted and skipped, never a black picture."""

from __future__ import annotations

import io
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from lightning_pfc.data.formats import (
    BrokenImageError,
    DecodedImages,
    FolderImages,
    RecordIOImages,
    TooManyBrokenImagesError,
    decode,
)
from tests.golden_formats import GOLDEN, golden


def encoded(size: tuple[int, int] = (40, 30), kind: str = "JPEG", mode: str = "RGB", seed: int = 0) -> bytes:
    height, width = size
    smooth = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8)
    image = Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("PNG", "P"), ("WEBP", "RGB")]
)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fast", [True, False])
def test_decodes_as_pillow_does(
    kind: str, mode: str, channels: int, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fast:
        monkeypatch.setattr("lightning_pfc.data.pictures.decoding._simplejpeg", lambda: None)
    data = encoded(kind=kind, mode=mode)
    image = decode(data, channels=channels)
    wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB" if channels == 3 else "L")).reshape(40, 30, channels)
    assert image.dtype == np.uint8
    assert image.shape == wanted.shape
    # Grey straight from the JPEG's luma differs from grey of rounded RGB by rounding.
    assert np.abs(image.astype(int) - wanted).max() <= (0 if channels == 3 or mode == "L" else 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_of_the_right_size_is_decoded_in_place(channels: int) -> None:
    data = encoded()
    room = np.zeros((2, 40, 30, channels), np.uint8)
    assert decode(data, channels=channels, out=(second := room[1])) is second
    np.testing.assert_array_equal(room[1], decode(data, channels=channels))
    assert not room[0].any()
    for other, size, at_least in (
        (data, (30, 40), None),
        (encoded(kind="PNG"), (40, 30), None),
        (data, (40, 30), (9, 9)),
    ):
        untouched = np.zeros((*size, channels), np.uint8)
        image = decode(other, channels=channels, out=untouched, at_least=at_least)
        assert image is not untouched
        assert not untouched.any()


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_cut_off_image_is_an_error(fast: bool, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr("lightning_pfc.data.pictures.decoding._simplejpeg", lambda: None)
    data = encoded(kind=kind)
    for end in (0, 1, 3, 10, len(data) // 2, len(data) * 3 // 4):
        with pytest.raises(BrokenImageError, match=r"^here: the image cannot be decoded"):
            decode(data[:end], where="here")


def test_a_large_image_is_refused_before_it_is_decoded() -> None:
    data = bytearray(encoded())
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = b"\xff\xdc\xff\xdc"  # 65500 x 65500 pixels, 12.9 GB
    with pytest.raises(BrokenImageError, match="65500 x 65500 pixels, more than max_pixels=16777216"):
        decode(bytes(data))
    with pytest.raises(BrokenImageError, match="30 x 40 pixels, more than max_pixels=100"):
        decode(encoded(kind="PNG"), max_pixels=100)
    with pytest.raises(ValueError, match="channels is 2"):
        decode(encoded(), channels=2)


def test_batches_are_the_pictures(tmp_path: Path) -> None:
    data = DecodedImages(RecordIOImages(GOLDEN / "mxnet_headered.rec"))
    assert data.image_shape == (3, 16, 16)
    batch = data.fetch(np.array([5, 0]))
    assert batch.dtype == torch.uint8
    for row, place in enumerate((5, 0)):
        wanted = np.asarray(Image.open(io.BytesIO(golden()[0][place])).convert("RGB"))
        np.testing.assert_array_equal(batch[row].permute(1, 2, 0).numpy(), wanted)
    assert DecodedImages(RecordIOImages(GOLDEN / "mxnet_headered.rec"), channels=1).fetch(np.array([5])).shape == (
        1,
        1,
        16,
        16,
    )


def folder_with_broken(root: Path, classes: int, per_class: int, broken: dict[tuple[int, int], bytes]) -> FolderImages:
    for label in range(classes):
        (root / f"{label:02d}").mkdir(parents=True)
        for number in range(per_class):
            good = encoded((12, 12), seed=label)
            (root / f"{label:02d}" / f"{number}.jpg").write_bytes(broken.get((label, number), good))
    return FolderImages(root)


def test_a_broken_image_stops_the_run_and_is_named(tmp_path: Path) -> None:
    data = DecodedImages(folder_with_broken(tmp_path, 2, 2, {(1, 0): encoded()[:300]}))
    assert data.fetch(np.array([0, 1, 3])).shape == (3, 3, 12, 12)
    with pytest.raises(BrokenImageError, match=r"01/0\.jpg: the image cannot be decoded \(300 bytes\)"):
        data.fetch(np.array([0, 2]))
    with pytest.raises(BrokenImageError, match=r"byte \d+ \(key 3\): the image has 16 x 16 pixels instead of 8 x 8"):
        DecodedImages(RecordIOImages(GOLDEN / "mxnet_headered.rec"), size=(8, 8)).fetch(np.array([2]))


class Rows(Dataset[torch.Tensor]):
    """Batches of four, in a loader's workers."""

    def __init__(self, images: DecodedImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images) // 4

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.images.fetch(np.arange(4 * number, 4 * number + 4))


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_images_are_counted_over_workers_and_keep_their_label(tmp_path: Path, workers: int) -> None:
    broken = {(1, 0): b"", (1, 1): encoded((12, 12), seed=9)[:-60], (4, 3): b"junk"}
    encoded_images = folder_with_broken(tmp_path, 5, 4, broken)
    data = DecodedImages(encoded_images, on_broken="skip", max_broken=0.2)
    for _ in range(2):
        batches = list(DataLoader(Rows(data), batch_size=None, num_workers=workers))
        for label, batch in enumerate(batches):
            assert batch.shape == (4, 3, 12, 12)
            wanted = decode(encoded((12, 12), seed=label))
            for picture in batch:
                np.testing.assert_array_equal(picture.permute(1, 2, 0).numpy(), wanted)
        assert data.broken.tolist() == [4, 5, 19]


def test_more_broken_images_than_allowed_stop_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoded_images = folder_with_broken(tmp_path, 2, 10, {(0, 0): b"", (1, 0): b""})
    data = DecodedImages(encoded_images, on_broken="skip", max_broken=0.05, size=(12, 12))
    with caplog.at_level(logging.WARNING):
        data.fetch(np.array([0]))
    assert "skipping a broken image (1 so far)" in caplog.text
    assert "00/0.jpg" in caplog.text
    with pytest.raises(
        TooManyBrokenImagesError, match=r"2 of 20 images are broken, more than max_broken=0\.05.*01/0\.jpg"
    ):
        data.fetch(np.array([10]))


def test_a_class_with_nothing_but_broken_images_stops_the_run(tmp_path: Path) -> None:
    encoded_images = folder_with_broken(tmp_path, 2, 2, {(1, 0): b"", (1, 1): b""})
    data = DecodedImages(encoded_images, on_broken="skip", max_broken=1.0)
    with pytest.raises(BrokenImageError, match=r"so is every other one of its class 1 \(01\)"):
        data.fetch(np.array([2]))


def test_other_sizes_are_refused_stretched_or_cropped(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    picture = np.zeros((20, 40, 3), np.uint8)
    picture[:, 10:30] = 255
    Image.fromarray(picture).save(tmp_path / "a" / "0.png")
    images = FolderImages(tmp_path)
    assert DecodedImages(images, size=(10, 10), fit="crop").fetch(np.array([0])).min() > 200
    stretched = DecodedImages(images, size=(10, 10), fit="stretch").fetch(np.array([0]))[0, 0]
    assert stretched[:, 0].max() < 50
    assert stretched[:, 5].min() > 200


def test_large_jpegs_are_decoded_small() -> None:
    data = encoded((800, 600))
    small = decode(data, at_least=(100, 75))
    assert small.shape == (100, 75, 3)
    large = np.asarray(Image.open(io.BytesIO(data)).resize((75, 100), Image.Resampling.BOX), dtype=int)
    assert np.abs(small.astype(int) - large).mean() < 3


def test_arguments_are_checked() -> None:
    images = RecordIOImages(GOLDEN / "mxnet_flat.rec")
    for arguments, message in (
        ({"fit": "fill"}, "fit='fill'"),
        ({"on_broken": "black"}, "on_broken='black'"),
        ({"max_broken": 3}, "max_broken is 3"),
    ):
        with pytest.raises(ValueError, match=message):
            DecodedImages(images, **arguments)  # type: ignore[arg-type]


def test_errors_survive_the_way_from_a_worker() -> None:
    error = BrokenImageError("it broke", path="a.rec", offset=7)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "a.rec, byte 7: it broke"
    assert (again.path, again.offset) == ("a.rec", 7)
    assert isinstance(again, ValueError)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the file is empty"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1", "it is HEIC; convert it to JPEG or PNG"),
        (b"\0\0\0\x20ftypavif\0\0\0\0", "it is AVIF; convert"),
        (b"<!DOCTYPE HTML><html>404", "it is a web page"),
        (b"\xef\xbb\xbf<html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"no picture at all", r"GIF\)$"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, said: str) -> None:
    with pytest.raises(BrokenImageError, match=said):
        decode(data, where="a.jpg")
