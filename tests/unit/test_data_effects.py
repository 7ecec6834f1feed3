"""Effects, presets and mixing of pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lightning_pfc.data import (
    CameraAugmentation,
    IdentityDataModule,
    Mix,
    MixedBatch,
    Pipeline,
    Synthetic,
    augmentation,
)
from lightning_pfc.data.augment import PRESETS
from lightning_pfc.data.counter import stream
from lightning_pfc.data.effects import (
    Blur,
    Effect,
    Erase,
    Flip,
    Grey,
    HueSaturation,
    KeepCrop,
    LowResolution,
    Photometric,
    Place,
    RandAugment,
    luma,
)
from lightning_pfc.data.effects.rand_augment import operate

EVERY: list[Effect] = [
    Flip(probability=0.5),
    Grey(probability=0.5),
    HueSaturation(probability=0.5),
    Photometric(probability=0.5),
    Blur(probability=0.5),
    LowResolution(probability=0.5),
    KeepCrop(probability=0.5),
    Erase(probability=0.5),
    Place(probability=0.5),
    RandAugment(probability=0.5),
]


def faces(count: int = 40, channels: int = 3, size: int = 24) -> torch.Tensor:
    torch.manual_seed(0)
    coarse = torch.rand(count, channels, 5, 5)
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear").clamp(0, 1)


def keys(count: int = 40) -> Any:
    return stream(3, 0, np.arange(count))


@pytest.mark.parametrize("effect", EVERY, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_effect_changes_its_share_alike_in_any_company(effect: Effect, channels: int) -> None:
    images = faces(channels=channels)
    before = images.clone()
    out = effect(images, keys())
    assert torch.equal(images, before)
    assert out.shape == images.shape
    assert out.min() >= 0
    assert out.max() <= 1
    changed = (out != images).flatten(1).any(1)
    if not (channels == 1 and isinstance(effect, Grey | HueSaturation)):
        assert 8 <= int(changed.sum()) <= 32
    some = [5, 0, 39, 17]
    torch.testing.assert_close(effect(images[some], keys()[some]), out[some], rtol=0, atol=1e-6)
    off = type(effect)(probability=0.0)
    assert torch.equal(off(images, keys()), images)


def test_grey_and_hue_do_what_they_say() -> None:
    images = faces()
    grey = Grey()(images, keys())
    torch.testing.assert_close(grey[:, 0], luma(images)[:, 0])
    assert torch.equal(grey[:, 0], grey[:, 2])
    turned = HueSaturation(hue=(120.0, 120.0), saturation=(1.0, 1.0))(images * 0.2 + 0.4, keys())
    torch.testing.assert_close(luma(turned), luma(images * 0.2 + 0.4), rtol=0, atol=2e-3)
    assert (turned - images * 0.2 - 0.4).abs().mean() > 0.02
    same = HueSaturation(hue=(0.0, 0.0), saturation=(1.0, 1.0))(images, keys())
    torch.testing.assert_close(same, images, rtol=0, atol=1e-5)
    dull = HueSaturation(hue=(0.0, 0.0), saturation=(0.0, 0.0))(images, keys())
    torch.testing.assert_close(dull, luma(images).expand_as(images), rtol=0, atol=2e-3)


def test_blur_is_gaussian_and_keeps_the_mean() -> None:
    point = torch.zeros(2, 1, 11, 11)
    point[:, :, 5, 5] = 1
    out = Blur(windows=(3,))(point, keys(2))
    weights = torch.exp(-0.5 * (torch.tensor([-1.0, 0.0, 1.0]) / 0.8) ** 2)
    weights /= weights.sum()
    torch.testing.assert_close(out[0, 0, 4:7, 4:7], torch.outer(weights, weights))
    both = Blur(windows=(3, 5))(point.repeat(30, 1, 1, 1), keys(60))
    extents = {int((o > 0).any(0).sum()) for o in both[:, 0]}
    assert extents == {3, 5}


def test_low_resolution_loses_detail_and_keeps_the_whole() -> None:
    images = torch.rand(20, 3, 32, 32)
    out = LowResolution(side=(0.25, 0.25))(images, keys(20))
    torch.testing.assert_close(out.mean((2, 3)), images.mean((2, 3)), rtol=0, atol=0.03)
    detail = [(x[..., 1:] - x[..., :-1]).abs().mean() for x in (images, out)]
    assert detail[1] < 0.4 * detail[0]


def test_rectangles_have_the_shares_asked_for() -> None:
    ones = torch.ones(200, 1, 50, 50)
    kept = KeepCrop(area=(0.2, 0.6), ratio=(1.0, 1.0))(ones, keys(200)).mean((1, 2, 3))
    assert 0.17 < kept.min() < 0.25
    assert 0.55 < kept.max() < 0.63
    erased = Erase(probability=1.0, area=(0.1, 0.1), ratio=(0.5, 2.0), fill="black")(ones, keys(200))
    share = 1 - erased.mean((1, 2, 3))
    assert (share - 0.1).abs().max() < 0.02
    rows = erased.amin((0, 1, 3))
    assert (rows == 0).all()  # no row is safe
    noisy = Erase(probability=1.0, area=(0.3, 0.3))(ones, keys(200))
    assert 0.25 < float((noisy != 1).float().mean()) < 0.35


def test_place_turns_and_resizes() -> None:
    images = torch.zeros(50, 1, 33, 33)
    images[:, :, 12:21, 12:21] = 1
    out = Place(scale=(2.0, 2.0), rotation=0.0)(images, keys(50))
    torch.testing.assert_close(out.sum((1, 2, 3)), torch.full((50,), 324.0), rtol=0.05, atol=0)
    turned = Place(scale=(1.0, 1.0), rotation=45.0)(images, keys(50))
    torch.testing.assert_close(turned.sum((1, 2, 3)), torch.full((50,), 81.0), rtol=0.05, atol=0)
    assert turned[:, :, 16, 21:24].amax() > 0.3  # corners reach where no edge did


@pytest.mark.parametrize("number", range(14))
def test_every_operation_of_randaugment_works(number: int) -> None:
    for channels in (1, 3):
        image = (faces(1, channels)[0] * 255).to(torch.uint8)
        for sign in (1, -1):
            out = operate(image, number, 0.5, sign)
            assert out.shape == image.shape
            assert out.dtype == torch.uint8
        if number and channels == 3:
            assert not torch.equal(operate(image, number, 0.9, 1), image)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_deterministic_and_stay_in_range(name: str) -> None:
    images = (faces() * 255).to(torch.uint8)
    augment = augmentation(name)
    out = augment(images, keys())
    assert out.dtype == torch.float32
    assert out.min() >= -1
    assert out.max() <= 1
    torch.testing.assert_close(augmentation(name)(images[3:9], keys()[3:9]), out[3:9], rtol=0, atol=1e-6)
    assert torch.equal(images, (faces() * 255).to(torch.uint8))


def test_a_step_keeps_its_numbers_when_others_come_or_go() -> None:
    images = (faces() * 255).to(torch.uint8)
    alone = Pipeline([Flip()])(images, keys())
    after = Pipeline([Grey(probability=0.0), Flip()])(images, keys())
    assert torch.equal(alone, after)
    twice = Pipeline([Erase(fill="black"), Erase(fill="black")])(images, keys())
    once = Pipeline([Erase(fill="black")])(images, keys())
    assert not torch.equal(twice, once)


def test_presets_go_by_name() -> None:
    module = IdentityDataModule(Synthetic(num_classes=4, channels=3), batch_size=8, augment="insightface_dali")
    module.setup()
    assert next(iter(module.train_dataloader()))[0].shape == (8, 3, 32, 32)
    with pytest.raises(ValueError, match="augment='strong' is not one of adaface, affine, affine_flip, camera"):
        IdentityDataModule(Synthetic(), augment="strong")
    assert augmentation({"name": "camera", "strength": 0.5}) == CameraAugmentation(strength=0.5)
    with pytest.raises(ValueError, match=r"strength=3 of affine must lie in \[0, 2\]"):
        augmentation({"name": "affine_flip", "strength": 3})
    with pytest.raises(TypeError, match="augment 'camera' does not take strenght"):
        augmentation({"name": "camera", "strenght": 0.5})


@pytest.mark.parametrize("kind", ["faces", "objects"])
def test_mirrored_pictures_are_moved_half_as_far(kind: str) -> None:
    made = IdentityDataModule(Synthetic(num_classes=4), kind=kind).augment
    whole = augmentation("affine_flip")
    assert isinstance(made, Pipeline)
    assert isinstance(whole, Pipeline)
    half, far = made.steps[0], whole.steps[0]
    assert isinstance(half, Place)
    assert isinstance(far, Place)
    for name in ("rotation", "shift", "shear", "stretch"):
        assert getattr(half, name) == pytest.approx(getattr(far, name) / 2)
    assert half.scale == pytest.approx((0.94, 1.06))
    assert far.scale == pytest.approx((0.88, 1.12))
    assert far.shift == pytest.approx(0.06)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Flip(probability=2.0), "probability=2.0"),
        (lambda: Blur(windows=(4,)), r"windows=\(4,\)"),
        (lambda: Photometric(contrast=1.5), "contrast=1.5"),
        (lambda: LowResolution(side=(0.0, 1.0)), "side"),
        (lambda: Erase(area=(0.5, 0.1)), "area"),
        (lambda: Erase(fill="white"), "fill='white'"),
        (lambda: KeepCrop(ratio=(0.0, 1.0)), "ratio"),
        (lambda: Place(scale=(0.0, 1.0)), "scale"),
        (lambda: RandAugment(magnitude=31), "magnitude=31"),
        (lambda: Mix(mixup=-1.0), "mixup=-1.0"),
        (lambda: Mix(mixup=0.0), "mix nothing"),
        (lambda: Mix(probability=1.5), "probability=1.5"),
    ],
)
def test_arguments_without_meaning_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- mixing -----------------------------------------------------------------------------------------------------------


def test_mixup_blends_neighbours_by_the_share() -> None:
    images, labels = torch.rand(6, 1, 4, 4), torch.arange(6)
    mixed = Mix(mixup=1.0)(images, labels, stream(0))
    assert isinstance(mixed, MixedBatch)
    assert mixed.other.tolist() == [1, 0, 3, 2, 5, 4]
    share = float(mixed.share)
    assert 0 < share < 1
    torch.testing.assert_close(mixed.images, share * images + (1 - share) * images[mixed.other])


def test_cutmix_pastes_a_rectangle_and_its_share_is_the_area() -> None:
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 20, 20).contiguous()
    for key in range(20):
        mixed = Mix(mixup=0.0, cutmix=1.0)(images, torch.arange(6), stream(key))
        own = (mixed.images == images).flatten(1).float().mean(1)
        torch.testing.assert_close(own, mixed.share.expand(6), rtol=0, atol=1e-6)
        foreign = mixed.images != images
        assert (mixed.images[foreign] == images[mixed.other][foreign]).all()


def test_shares_are_beta_distributed_and_some_batches_are_left_alone() -> None:
    images, labels = torch.zeros(2, 1, 1, 1), torch.arange(2)
    mix = Mix(mixup=0.5, probability=0.5)
    shares = np.asarray([float(mix(images, labels, stream(k)).share) for k in range(600)])
    whole = shares == 1.0
    assert 240 < whole.sum() < 360
    assert abs(shares[~whole].mean() - 0.5) < 0.06
    assert abs(shares[~whole].var() - 0.125) < 0.03  # 1 / (4 (2 alpha + 1))
    untouched = mix(images, labels, stream(int(np.flatnonzero(whole)[0])))
    assert untouched.other.tolist() == [0, 1]


def test_mixing_is_the_same_on_two_ranks() -> None:
    from lightning_pfc.data.batches import BatchNumber, BatchPlan, TrainingBatches
    from lightning_pfc.data.images import ArrayImages
    from lightning_pfc.data.orders import ShuffledOrder

    array = np.random.default_rng(0).integers(0, 256, (40, 6, 6), dtype=np.uint8)

    def part(rank: int, world_size: int) -> Any:
        plan = BatchPlan(order=ShuffledOrder(40), batch_size=8 // world_size, rank=rank, world_size=world_size)
        return TrainingBatches(ArrayImages(array), np.arange(40), plan, augmentation("flip"), 1, Mix(cutmix=1.0))

    for batch in range(5):
        whole = part(0, 1)[BatchNumber(1, batch)]
        halves = [part(rank, 2)[BatchNumber(1, batch)] for rank in range(2)]
        for name in ("images", "labels", "other"):
            torch.testing.assert_close(torch.cat([getattr(h, name) for h in halves]), getattr(whole, name))
        assert halves[0].share == halves[1].share == whole.share


def test_mixing_needs_an_even_batch_and_one_label_space() -> None:
    module = IdentityDataModule(Synthetic(num_classes=4), batch_size=7, mix=Mix())
    module.setup()
    with pytest.raises(ValueError, match="batch_size=7 must be even"):
        module.train_dataloader()


def test_a_loader_with_workers_keeps_the_type_of_mixed_batches() -> None:
    module = IdentityDataModule(Synthetic(num_classes=4, image_size=8), batch_size=8, mix={"mixup": 0.3}, num_workers=1)
    module.setup()
    batch = next(iter(module.train_dataloader()))
    assert isinstance(batch, MixedBatch)
    assert batch.share.shape == ()
    assert module.mix == Mix(mixup=0.3)


def test_the_module_trains_on_both_labels() -> None:
    from lightning_pfc import PartialFCModule

    torch.manual_seed(0)
    backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16))
    model = PartialFCModule(backbone=backbone, num_classes=6, embedding_dim=8, input_size=(1, 8, 8), neck="linear")
    images, labels = torch.rand(6, 1, 8, 8), torch.arange(6)
    batch = Mix(mixup=1.0)(images, labels, stream(0))
    embeddings = model(batch.images)
    first, second = model.head(embeddings, labels), model.head(embeddings, batch.other)
    share = float(batch.share)
    mixed = model.training_loss(embeddings, batch)
    torch.testing.assert_close(mixed, share * first + (1 - share) * second)
    assert abs((first - second).item()) > 1e-3


def test_affine_keeps_what_lies_at_the_edge() -> None:
    images, keys = torch.full((8, 1, 16, 16), 200, dtype=torch.uint8), stream(0, 1, np.arange(8))
    assert bool(augmentation("affine")(images, keys).allclose(torch.tensor(200 / 127.5 - 1), atol=1e-5))
    ramp = torch.arange(16, dtype=torch.float32).expand(8, 1, 16, 16) / 15
    plain = Place(scale=(1.0, 1.0), rotation=0.0, shear=0.0, stretch=0.0)
    assert bool(plain(ramp, keys).allclose(ramp, atol=1e-5))
    slanted = Place(scale=(1.0, 1.0), rotation=0.0, shear=0.5)(ramp, keys)
    assert bool((slanted[:, :, 0] - slanted[:, :, 15]).abs().amax((1, 2)).gt(0.05).any())  # rows move apart
    with pytest.raises(ValueError, match="outside='white' must be black or edge"):
        Place(outside="white")  # type: ignore[arg-type]
