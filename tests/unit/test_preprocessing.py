"""One way from a file to what the model sees: the same bytes in training, wherever it is judged, and in Python."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lightning_pfc import PartialFCModule
from lightning_pfc.checkpoint import CheckpointError
from lightning_pfc.data import Files, IdentityDataModule, Joint, Preprocessing, Synthetic
from lightning_pfc.data.augment import PRESETS, augmentation, mirrors
from lightning_pfc.data.camera import to_float
from lightning_pfc.data.errors import BrokenImageError
from lightning_pfc.evaluation import EvaluationSettings, Evaluator, TorchEmbedder, checkpoint_embedder, write_bin
from lightning_pfc.evaluation.embedders import preprocessing_of
from lightning_pfc.evaluation.faces import EncodedFaces, open_faces
from tests.unit.test_pictures import by_pillow, high_bytes

SIZES = [(24, 24), (31, 17), (17, 31), (25, 24), (225, 270), (90, 40), (16, 200)]


def pictures() -> list[tuple[str, bytes]]:
    """Every size, orientation and kind of pixels, as they lie in data sets."""
    rng = np.random.default_rng(3)
    found: list[tuple[str, bytes]] = []
    kinds = [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "P"), ("WEBP", "RGBA"), ("TIFF", "LA"), ("BMP", "RGB")]
    for number, size in enumerate(SIZES):
        smooth = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize(size[::-1])
        smooth.putalpha(Image.fromarray(rng.integers(0, 256, size, np.uint8)))
        for orientation in range(1, 9):
            kind, mode = kinds[(number + orientation) % len(kinds)]
            exif = Image.Exif()
            exif[0x0112] = orientation
            options = {} if kind == "BMP" else {"exif": exif}
            found.append((f"{kind} {mode} {size} {orientation}", by_pillow(smooth.convert(mode), kind, **options)))
    return found + [(name, data) for name, (data, _) in high_bytes().items()]


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faces")
    for number, (_, data) in enumerate(pictures() * 2):
        folder = root / f"{number // 3:03d}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number % 3}.img").write_bytes(data)
    return root


def everything(loader: Any) -> Tensor:
    return torch.cat([batch[0] for batch in loader])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("fit", "resampling", "background"),
    [
        ("stretch", "bilinear", "none"),
        ("crop", "bilinear", "white"),
        ("crop", "lanczos", "none"),
        ("pad", "bilinear", "black"),
    ],
)
def test_training_judging_and_python_see_the_same_bytes(
    faces: Path, fit: Any, resampling: Any, background: Any, channels: int
) -> None:
    size = (24, 20)
    source = Files(
        path=faces, validation=faces, test=faces, image_size=size, fit=fit, resampling=resampling, channels=channels,
        background=background, impostors=10,
    )  # fmt: skip
    data = IdentityDataModule(source, batch_size=1, augment="none")
    data.prepare_data()
    data.setup()
    files = sorted(faces.rglob("*.img"))
    record = Preprocessing(size=size, fit=fit, resampling=resampling, background=background, channels=channels)
    assert data.preprocessing == record
    python = torch.cat([record(file.read_bytes()) for file in files])
    assert python.dtype == torch.float32
    assert python.shape == (len(files), channels, *size)

    train = data.train_dataloader()
    position = np.concatenate([train.dataset.drawn(n)[1] for n in range(len(train))])  # type: ignore[attr-defined]
    assert torch.equal(everything(train.dataset), python[position])  # type: ignore[attr-defined]
    assert torch.equal(everything(data.val_dataloader()[0]), python)
    assert torch.equal(everything(data.test_dataloader()[0]), python)

    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.images: list[Tensor] = []

        def forward(self, images: Tensor) -> Tensor:
            self.images.append(images)
            return images.flatten(1) * self.weight

    seen = Seen()
    embedder = TorchEmbedder(seen, record.image_shape, preprocessing=record)
    evaluator = Evaluator(embedder, EvaluationSettings(replicates=0, fars=(), ranks=(1,), batch_size=7))
    evaluator.open_set("faces", str(faces))
    assert torch.equal(torch.cat(seen.images), python)
    assert torch.equal(record.tensor(EncodedFaces(_Encoded(files), record).fetch(np.arange(len(files)))), python)
    pixels = [record.picture(file.read_bytes()) for file in files]
    assert torch.equal(torch.cat([record(each) for each in pixels]), python)


@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize(("have", "inner"), [((20, 40), (12, 24)), ((40, 20), (20, 10)), ((1, 900), (1, 24))])
def test_a_padded_picture_is_whole_between_zeros(color: Any, have: tuple[int, int], inner: tuple[int, int]) -> None:
    mean = (10.0, 120.0, 250.0)
    record = Preprocessing(size=(20, 24), fit="pad", mean=mean, std=(50.0,), color=color)
    pixels = np.full((*have, 3), 200, np.uint8)
    fitted = record.fitted(pixels)
    assert fitted.shape == (20, 24, 3)
    inside = (fitted == 200).all(2)
    assert (inside.any(1).sum(), inside.any(0).sum()) == inner
    assert inside.sum() == inner[0] * inner[1]
    seen = record(pixels)[0]
    assert seen[:, torch.from_numpy(~inside)].abs().max() < 1e-5
    top, left = np.argwhere(inside)[0]
    assert abs(2 * top + inner[0] - 20) <= 1
    assert abs(2 * left + inner[1] - 24) <= 1


class _Encoded:
    source = "files"

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.labels = np.arange(len(files))

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> bytes:
        return self.files[index].read_bytes()

    def locate(self, index: int) -> str:
        return str(self.files[index])


def test_a_model_remembers_and_is_judged_as_it_was_trained(faces: Path, tmp_path: Path, caplog: Any) -> None:
    """What d9503b9 did: the middle cut out and mirror images added, whatever the model was trained on."""
    torch.manual_seed(0)
    source = Files(path=faces, test=faces, image_size=24, fit="stretch", impostors=200)
    data = IdentityDataModule(source, batch_size=16, augment="none")
    module = PartialFCModule(
        backbone="test_resnet", num_classes=_classes(faces), embedding_dim=8, input_size=(3, 24, 24), loss="cosface"
    )
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(max_steps=2, accelerator="cpu", default_root_dir=tmp_path, **options)
    trainer.fit(module, datamodule=data)
    record = Preprocessing(size=(24, 24), fit="stretch")
    assert module.preprocessing == record
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    trainer.test(module, datamodule=data, verbose=False)

    again = PartialFCModule.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert again.preprocessing == record
    embedder = checkpoint_embedder(tmp_path / "a.ckpt")
    assert preprocessing_of(embedder) == record
    faces_seen = open_faces(faces, embedder.preprocessing).images
    assert faces_seen is not None
    inside = torch.cat([batch[0] for batch in data.test_dataloader()[0]])
    with torch.no_grad():
        wanted = module.eval()(inside)
    torch.testing.assert_close(Evaluator(embedder).embed(faces_seen), wanted, rtol=1e-5, atol=1e-6)

    # The same numbers as the trainer's test, pair by pair.
    pairs = data.verification_sets("test")["test"].pairs
    found = Evaluator(embedder, EvaluationSettings(replicates=0, fars=(0.1,))).verify("x", pairs, faces_seen)  # type: ignore[arg-type]
    values = {m.name: m.value for m in found.measurements}
    assert values["auc"] == pytest.approx(float(trainer.callback_metrics["test/auc"]), abs=1e-3)

    # Mirrored in training, so judged with mirror images; the user's word wins; a model that says nothing is told of.
    data.augment = augmentation("flip")
    with pytest.warns(UserWarning, match=r"ready with flip=none; the data say flip=sum, which is in force"):
        L.Trainer(max_steps=1, accelerator="cpu", default_root_dir=tmp_path, **options).fit(module, datamodule=data)
    assert module.preprocessing == record.changed(flip="sum")
    module.trainer.save_checkpoint(tmp_path / "b.ckpt")
    embedder = checkpoint_embedder(tmp_path / "b.ckpt")
    assert Evaluator(embedder).flip == "sum"
    assert Evaluator(embedder, EvaluationSettings(flip="none", fit="crop")).preprocessing == record.changed(fit="crop")
    assert checkpoint_embedder(tmp_path / "b.ckpt", mean=(1, 2, 3), channels="bgr").preprocessing.color == "bgr"
    with torch.no_grad():
        wanted = module.eval()(inside).double() + module(inside.flip(-1)).double()
    torch.testing.assert_close(Evaluator(embedder).embed(faces_seen), wanted, rtol=1e-5, atol=1e-6)
    old = torch.load(tmp_path / "b.ckpt", weights_only=True)
    del old["hyper_parameters"]["preprocessing"]
    torch.save(old, tmp_path / "old.ckpt")
    with caplog.at_level(logging.WARNING):
        embedder = checkpoint_embedder(tmp_path / "old.ckpt")
    assert "does not say how its pictures were made. Taken is: size=[24, 24]" in caplog.text
    assert embedder.preprocessing == Preprocessing(size=(24, 24), fit="crop", flip="sum")
    old["hyper_parameters"]["preprocessing"] = {"size": [24, 24], "fit": "__import__('os')"}
    torch.save(old, tmp_path / "old.ckpt")
    with pytest.raises(CheckpointError, match='sets preprocessing to "__import__'):
        checkpoint_embedder(tmp_path / "old.ckpt")


def _classes(root: Path) -> int:
    return len(list(root.iterdir()))


def test_a_run_that_goes_on_with_other_pictures_says_so(faces: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}

    def parts(fit: Any) -> tuple[L.Trainer, PartialFCModule, IdentityDataModule]:
        data = IdentityDataModule(Files(path=faces, test=faces, image_size=24, fit=fit, impostors=9), batch_size=16)
        module = PartialFCModule(
            backbone="test_resnet", num_classes=_classes(faces), embedding_dim=8, input_size=(3, 24, 24)
        )
        return L.Trainer(max_steps=1, accelerator="cpu", default_root_dir=tmp_path, **options), module, data

    trainer, module, data = parts("crop")
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    trainer, module, data = parts("stretch")
    with pytest.warns(UserWarning, match=r"ready with fit=crop; the data say fit=stretch, which is in force"):
        trainer.test(module, datamodule=data, ckpt_path=tmp_path / "c.ckpt", verbose=False)
    assert module.preprocessing is not None
    assert module.preprocessing.flip == "sum"


def test_which_augmentations_mirror() -> None:
    assert {name for name in PRESETS if mirrors(augmentation(name))} == set(PRESETS) - {"none", "camera", "affine"}
    assert not mirrors(lambda images, keys: to_float(images))


def test_what_several_data_sets_agree_on(faces: Path, caplog: pytest.LogCaptureFixture) -> None:
    exact = Files(path=faces, image_size=24, check=0)
    crop = Files(path=faces, image_size=24, check=0, fit="crop")
    joint = Joint(sources={"a": exact, "b": crop}).open()
    assert joint.preprocessing == Preprocessing(size=(24, 24), fit="crop")
    assert not caplog.text
    stretch = Files(path=faces, image_size=24, check=0, fit="stretch")
    assert Joint(sources={"a": crop, "b": stretch}).open().preprocessing == joint.preprocessing
    assert "a: crop, bilinear, b: stretch, bilinear" in caplog.text
    drawn = IdentityDataModule(Synthetic(num_classes=20, channels=1))
    drawn.setup()
    assert drawn.preprocessing == Preprocessing(size=(32, 32), channels=1)


def test_cropping_takes_the_largest_middle_of_any_picture() -> None:
    """42 of 1,500 sizes stopped with "box offset can't be negative" at d9503b9."""
    rng = np.random.default_rng(0)
    for number in range(1500):
        height, width = rng.integers(1, 400, 2).tolist() if number else (225, 270)
        size = tuple(rng.integers(1, 300, 2).tolist()) if number % 3 else (112, 112)
        picture = np.zeros((height, width, 3), np.uint8)
        picture[:, :, 0] = np.arange(width) * 255 // max(1, width - 1)
        fitted = Preprocessing(size=size, fit="crop").fitted(picture)
        assert fitted.shape == (*size, 3)
        middle = float(fitted[:, :, 0].mean())
        assert width < 8 or abs(middle - 127.5) < 128 / width + 4
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = 255
    assert (Preprocessing(size=(10, 10), fit="crop").fitted(wide)[:, 1:-1] == 255).all()


def test_exact_means_the_size_of_the_file() -> None:
    record = Preprocessing(size=(40, 50))
    photo = by_pillow(Image.fromarray(np.zeros((80, 100, 3), np.uint8)), "JPEG")
    with pytest.raises(BrokenImageError, match=r"100 x 80 pixels instead of 50 x 40.*settings\.fit=crop"):
        record.picture(photo, max_pixels=4000)  # decoded at half its size, it has just the right one
    with pytest.raises(BrokenImageError, match="9 x 9 pixels instead of 50 x 40"):
        record(np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(ValueError, match=r"pixels are float64 \(9, 9, 3\)"):
        record(np.zeros((9, 9, 3)))  # type: ignore[arg-type]


def test_floats_are_those_of_training_to_the_bit() -> None:
    images = torch.randint(0, 256, (5, 3, 8, 9), dtype=torch.uint8)
    assert torch.equal(Preprocessing(size=(8, 9)).tensor(images), to_float(images))
    record = Preprocessing(size=(8, 9), mean=(1, 2, 3), std=(10, 20, 40), color="bgr")
    turned = images.flip(1).double()
    wanted = (turned - torch.tensor([1, 2, 3]).view(3, 1, 1)) / torch.tensor([10, 20, 40]).view(3, 1, 1)
    torch.testing.assert_close(record.tensor(images).double(), wanted, rtol=1e-6, atol=1e-6)
    ten: Any = 10
    one_std = Preprocessing(size=(8, 9), mean=(1, 2, 3), std=ten).tensor(images)
    torch.testing.assert_close(one_std[:, 2], (images[:, 2].float() - 3) / 10)


@pytest.mark.parametrize(
    "words",
    [{}, {"mean": (1, 2, 3), "std": (10, 20, 40), "color": "bgr"}, {"mean": 3, "std": (7, 11, 13)}, {"channels": 1}],
)
def test_what_serves_without_torch_computes_the_same_bits(words: Any) -> None:
    record = Preprocessing(size=(8, 9), **words)
    pictures = np.random.default_rng(0).integers(0, 256, (5, 8, 9, record.channels), dtype=np.uint8)
    found = record.array(pictures)
    assert found.flags.c_contiguous
    assert torch.equal(torch.from_numpy(found), record.tensor(torch.from_numpy(pictures).permute(0, 3, 1, 2)))


def test_the_record_is_plain_and_nothing_in_it_is_believed() -> None:
    mean: Any = 3.0
    record = Preprocessing(size=(112, 96), channels=1, fit="crop", resampling="box", mean=mean, std=(2.0,), flip="sum")
    plain = json.loads(json.dumps(record.to_config()))
    assert Preprocessing.from_config(plain) == record
    assert "background" not in plain  # as before there was one, so that digests of models stay
    assert Preprocessing.from_config(record.changed(background="white").to_config()).background == "white"
    for key, value, message in (
        ("size", [112], "size is"),
        ("size", "ab", "size is"),
        ("size", [1 << 20, 4], "1 to 16384 pixels"),
        ("size", [True, 4], "size is"),
        ("channels", 4, "channels is 4"),
        ("fit", "pad it", "fit is 'pad it'"),
        ("fit", ["crop"], "preprocessing|fit is"),
        ("resampling", None, "resampling is None"),
        ("background", "red", "background is 'red'"),
        ("mean", [1.0, 2.0], "mean is"),
        ("mean", float("nan"), "mean is nan"),
        ("std", 0.0, "std is 0.0; its numbers are finite, and above 0"),
        ("std", {"a": 1}, "std is"),
        ("flip", "both", "flip is 'both'"),
        ("path", "/etc/passwd", "must be a mapping with size, and of background, channels, color"),
    ):
        with pytest.raises(ValueError, match=message):
            Preprocessing.from_config({**plain, key: value})
    wrong: Any
    for wrong in (None, [], "x", {}, {"fit": "crop"}, {1: 2}):
        with pytest.raises(ValueError, match="must be a mapping with size"):
            Preprocessing.from_config(wrong)
    with pytest.raises(ValueError, match="preprocessing has no 'sise'"):
        record.changed(sise=3)
    assert record.changed(fit=None, mean=None) == record


def test_large_photos_train_and_are_judged(tmp_path: Path) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)).resize((600, 500))
    for name in ("a", "b"):
        (tmp_path / "faces" / name).mkdir(parents=True)
        photo.save(tmp_path / "faces" / name / "0.jpg")
        photo.save(tmp_path / "faces" / name / "1.jpg", quality=30)
    source = Files(path=tmp_path / "faces", image_size=24, fit="crop", max_pixels=100_000)
    source.prepare()
    assert source.open().train.fetch(np.arange(4)).shape == (4, 3, 24, 24)
    photo.save(tmp_path / "faces" / "a" / "2.png")
    with pytest.raises(ValueError, match=r"a/2\.png: the image has 600 x 500 pixels, more than max_pixels=100000"):
        source.prepare()
    with pytest.raises(ValueError, match="max_pixels is 0"):
        Files(path=tmp_path / "faces", image_size=24, max_pixels=0).open()
    write_bin(tmp_path / "p.bin", [by_pillow(photo, "JPEG")] * 4, [True, False])
    flat = TorchEmbedder(nn.Sequential(nn.Flatten(), nn.Linear(27, 4)), (3, 3, 3))
    Evaluator(flat, EvaluationSettings(replicates=0, fars=(), max_pixels=100_000)).bin("p", str(tmp_path / "p.bin"))
    with pytest.raises(ValueError, match="more than max_pixels=2000"):
        Evaluator(flat, EvaluationSettings(replicates=0, max_pixels=2000)).bin("p", str(tmp_path / "p.bin"))


def test_bytes_of_any_kind_are_taken(tmp_path: Path) -> None:
    record, data = Preprocessing(size=(24, 20), fit="crop"), pictures()[5][1]
    wanted = record(data)
    assert torch.equal(record(bytearray(data)), wanted)  # type: ignore[arg-type]
    assert torch.equal(record(memoryview(data)), wanted)  # type: ignore[arg-type]
    assert Image.open(io.BytesIO(data)).size == (24, 24)
