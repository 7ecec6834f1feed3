"""Augmentation by the batch: ranges, effects, and independence of the company an image keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lightning_pfc.data.augment import RandomFlip
from lightning_pfc.data.camera import CameraAugmentation, to_float
from lightning_pfc.data.counter import stream

OFF: dict[str, Any] = dict.fromkeys(
    ("shift", "scale", "rotation", "shear", "stretch", "stroke", "blur", "contrast", "noise"), 0.0
)


def squares(count: int = 64, size: int = 33, inner: int = 9) -> torch.Tensor:
    images = torch.zeros(count, 1, size, size, dtype=torch.uint8)
    edge = (size - inner) // 2
    images[:, :, edge : edge + inner, edge : edge + inner] = 255
    return images


def keys(count: int = 64) -> Any:
    return stream(0, 0, np.arange(count))


def test_without_effects_nothing_changes() -> None:
    images = torch.randint(0, 256, (5, 3, 8, 9), dtype=torch.uint8)
    torch.testing.assert_close(CameraAugmentation(**OFF)(images, keys(5)), to_float(images), rtol=0, atol=1e-6)
    torch.testing.assert_close(CameraAugmentation(strength=0.0)(images, keys(5)), to_float(images), rtol=0, atol=1e-6)


def test_to_float_covers_the_range() -> None:
    assert to_float(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).flatten().tolist() == [-1.0, 1.0]


def test_an_image_is_augmented_alike_in_any_batch() -> None:
    images = torch.randint(0, 256, (32, 1, 16, 16), dtype=torch.uint8)
    augment, k = CameraAugmentation(), keys(32)
    together = augment(images, k)
    for chosen in ([3], [31, 0, 7], list(range(1, 32, 2))):
        torch.testing.assert_close(augment(images[chosen], k[chosen]), together[chosen], rtol=0, atol=1e-6)


def test_the_result_stays_in_range_and_leaves_the_input_alone() -> None:
    images = torch.randint(0, 256, (32, 3, 16, 16), dtype=torch.uint8)
    before = images.clone()
    out = CameraAugmentation(noise=0.5, contrast=0.4)(images, keys(32))
    assert out.dtype == torch.float32
    assert out.shape == images.shape
    assert out.min() >= -1
    assert out.max() <= 1
    assert torch.equal(images, before)


def test_shift_moves_the_ink_by_up_to_its_share() -> None:
    out = CameraAugmentation(**{**OFF, "shift": 0.2})(squares(), keys())
    ink = (out + 1) / 2
    weights = ink.sum((1, 2, 3))
    positions = torch.arange(33.0)
    column = (ink.sum((1, 2)) * positions).sum(1) / weights
    row = (ink.sum((1, 3)) * positions).sum(1) / weights
    for centre in (column, row):
        moved = (centre - 16).abs()
        assert moved.max() <= 0.2 * 33 + 0.01
        assert moved.max() > 0.15 * 33
    assert abs(float(torch.corrcoef(torch.stack([column, row]))[0, 1])) < 0.4


def test_scale_changes_the_area() -> None:
    out = CameraAugmentation(**{**OFF, "scale": 0.3})(squares(), keys())
    edges = ((out + 1) / 2).sum((1, 2, 3)).sqrt() / 9
    assert 0.65 < edges.min() < 0.75
    assert 1.25 < edges.max() < 1.35


def test_stroke_thickens_and_thins() -> None:
    out = CameraAugmentation(**{**OFF, "stroke": 1.0})(squares(), keys())
    area = ((out + 1) / 2).sum((1, 2, 3))
    assert area.min() >= 49 - 1e-3  # 9 x 9, thinned to 7 x 7 at the utmost
    assert area.max() <= 121 + 1e-3  # thickened to 11 x 11
    assert area.min() < 55
    assert area.max() > 115


def test_blur_keeps_the_ink_and_spreads_it() -> None:
    out = (CameraAugmentation(**{**OFF, "blur": 1.0})(squares(inner=1), keys()) + 1) / 2
    torch.testing.assert_close(out.sum((1, 2, 3)), torch.ones(64), rtol=0, atol=1e-4)
    offsets = torch.arange(33.0) - 16
    variance = (out.sum((1, 2)) * offsets**2).sum(1)
    assert variance.min() < 0.05
    assert 0.5 < variance.max() <= 2 / 3 + 1e-4


def test_contrast_and_noise() -> None:
    dim = (CameraAugmentation(**{**OFF, "contrast": 0.4})(squares(), keys()) + 1) / 2
    assert dim.amin((1, 2, 3)).max() > 0.3
    assert dim.amax((1, 2, 3)).min() < 0.7
    assert dim.min() >= 0
    grey = torch.full((64, 1, 32, 32), 127, dtype=torch.uint8)
    grain = (CameraAugmentation(**{**OFF, "noise": 0.1})(grey, keys()) + 1) / 2
    spread = grain.flatten(1).std(1)
    assert spread.min() < 0.01
    assert 0.08 < spread.max() <= 0.105
    assert not torch.equal(grain[0], grain[1])


@pytest.mark.parametrize(
    ("name", "value"), [("shift", -0.1), ("rotation", float("nan")), ("scale", 1.0), ("blur", 1.5), ("strength", "no")]
)
def test_amounts_without_meaning_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        CameraAugmentation(**{name: value})


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 3])
def test_flip_mirrors_half(layout: torch.memory_format, channels: int) -> None:
    images = torch.randint(0, 256, (500, channels, 4, 5), dtype=torch.uint8).contiguous(memory_format=layout)
    before = images.clone()
    out, plain = RandomFlip()(images, keys(500)), to_float(images)
    same = (out == plain).flatten(1).all(1)
    mirrored = (out == plain.flip(3)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 200 < int(mirrored.sum()) < 300
    assert torch.equal(images, before)
    assert torch.equal(RandomFlip(probability=0.0)(images, keys(500)), plain)
    with pytest.raises(ValueError, match="probability"):
        RandomFlip(probability=1.1)
