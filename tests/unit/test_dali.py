"""Training batches by DALI: those of the plain loader. Its CPU operators run here, where it is installed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn

from lightning_pfc import train
from lightning_pfc.data import Dali, Files, IdentityDataModule, Joint, Pipeline, RandomFlip, Synthetic
from lightning_pfc.data.augment import augmentation
from lightning_pfc.data.batches import BatchPlan, TrainingBatches, TrainingLoader
from lightning_pfc.data.counter import stream
from lightning_pfc.data.curation.convert import convert
from lightning_pfc.data.dali import has_dali
from lightning_pfc.data.dali.steps import draw
from lightning_pfc.data.effects import Blur, Effect, Flip, Grey, HueSaturation, LowResolution
from lightning_pfc.data.formats import BrokenImageError, FolderImages, MissingLibraryError
from lightning_pfc.data.orders import ShuffledOrder

with_dali = pytest.mark.skipif(not has_dali(), reason="the extra `dali` is not installed")

LEVEL = 1 / 127.5  # of the 256 that a pixel has, in the units of a batch
SIZE = (40, 32)
CLASSES, EACH = 6, 7


def encoded(seed: int, size: tuple[int, int] = SIZE, mode: str = "RGB", kind: str = "JPEG") -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    picture = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).convert(mode)
    out = io.BytesIO()
    picture.save(out, kind, quality=90)
    return out.getvalue()


def make_faces(folder: Path, seed: int = 0, size: tuple[int, int] = SIZE, kind: str = "JPEG") -> Path:
    for label in range(CLASSES):
        (folder / f"person{label}").mkdir(parents=True)
        for number in range(EACH):
            data = encoded(seed + label * EACH + number, size, kind=kind)
            (folder / f"person{label}" / f"{number}.{'jpg' if kind == 'JPEG' else kind.lower()}").write_bytes(data)
    return folder


@pytest.fixture(autouse=True)
def on_the_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU operators, also where there is a GPU."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr(IdentityDataModule, "_device", lambda self: torch.device("cpu"))


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_faces(tmp_path_factory.mktemp("data") / "faces")


def opened(source: Any, loader: Any = None, **kwargs: Any) -> IdentityDataModule:
    files = Files(path=source, check=0, image_size=SIZE) if isinstance(source, Path) else source
    module = IdentityDataModule(files, **{"batch_size": 8, "seed": 3, **kwargs}, loader=loader)
    module.prepare_data()
    module.setup()
    return module


def both(source: Any, epoch: int = 0, **kwargs: Any) -> tuple[list[Any], list[Any]]:
    """An epoch of the plain loader, and the same of DALI's."""
    out = []
    for choice in (None, {"name": "dali", "threads": 1}):
        loader = opened(source, choice, **kwargs).train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        out.append(list(loader))
    return out[0], out[1]


def differences(plain: list[Any], ours: list[Any]) -> Tensor:
    """Absolute differences of the pixels in levels, after a look at everything that must be equal."""
    assert len(plain) == len(ours) > 0
    for theirs, mine in zip(plain, ours, strict=True):
        assert type(mine) is type(theirs)
        assert len(mine) == len(theirs)
        for a, b in zip(theirs[1:], mine[1:], strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
        assert mine[0].dtype == theirs[0].dtype
        assert mine[0].shape == theirs[0].shape
        assert mine[0].is_contiguous(memory_format=torch.channels_last)
        assert mine[0].device == theirs[0].device
    return torch.cat([(a[0] - b[0]).abs() for a, b in zip(plain, ours, strict=True)]) / LEVEL


# --- what is refused (without DALI as well) ---------------------------------------------------------------------------


def test_without_dali_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_pfc.data.dali.choice.has_dali", lambda: False)
    with pytest.raises(MissingLibraryError, match=r"loader='dali' needs NVIDIA DALI.*lightning-pfc\[dali\]"):
        IdentityDataModule(Synthetic(), loader="dali")


@pytest.fixture
def as_if_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_pfc.data.dali.choice.has_dali", lambda: True)


@pytest.mark.usefixtures("as_if_installed")
@pytest.mark.parametrize(
    ("choice", "error", "text"),
    [
        ("daly", ValueError, "loader='daly' must be 'dali'"),
        ({"threads": 2}, ValueError, "loader=None must be 'dali'"),
        ({"name": "dali", "workers": 2}, TypeError, "takes threads, not workers"),
        ({"name": "dali", "threads": 0}, ValueError, "threads=0 must be an integer"),
    ],
)
def test_another_loader_or_argument_is_refused(choice: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        IdentityDataModule(Synthetic(), loader=choice)


@pytest.mark.usefixtures("as_if_installed")
def test_pictures_that_are_not_in_files_are_refused_before_training(faces: Path) -> None:
    with pytest.raises(ValueError, match="the pictures of SyntheticImages are not encoded"):
        opened(Synthetic(channels=3), "dali")
    joint = Joint(sources={"a": Files(path=faces, image_size=32, fit="crop"), "b": Synthetic(channels=3)})
    with pytest.raises(ValueError, match="SyntheticImages"):
        opened(joint, "dali")


@pytest.mark.usefixtures("as_if_installed")
def test_what_dali_cannot_do_with_files_is_refused_before_training(faces: Path) -> None:
    with pytest.raises(ValueError, match=r"on_broken='skip'.*pfc-data check"):
        opened(Files(path=faces, on_broken="skip"), "dali")
    mixed = {fit: Files(path=faces, image_size=24, fit=fit) for fit in ("crop", "stretch")}  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"one fit for all data sets, not \['crop', 'stretch'\]"):
        opened(Joint(sources=mixed), "dali")


class _Turned(Blur):
    """A user's own effect that looks like one of ours."""


@pytest.mark.usefixtures("as_if_installed")
@pytest.mark.parametrize(
    ("augment", "name"),
    [
        ("camera", "CameraAugmentation"),
        ("adaface", "KeepCrop"),
        ("randaugment", "RandAugment"),
        ("erasing", "Erase"),
        ("cvlface_grid_sample", "Place"),
        (Pipeline([Flip(), _Turned()]), "_Turned"),
        (lambda images, keys: images, "function"),
    ],
)
def test_an_augmentation_that_dali_cannot_do_is_refused_before_training(faces: Path, augment: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"cannot do {name}. It does .*'insightface_dali'"):
        opened(faces, "dali", augment=augment)


# --- the numbers that DALI is given -----------------------------------------------------------------------------------


def test_an_image_is_given_the_numbers_of_its_key_alone() -> None:
    keys = stream(5, 1, np.arange(400))
    whole = draw(augmentation("insightface_dali"), keys, (3, 112, 112))
    some = np.asarray([3, 200, 77])
    for name, values in draw(augmentation("insightface_dali"), keys[some], (3, 112, 112)).items():
        np.testing.assert_array_equal(values, whole[name][some])
    assert len(whole) == 1 + 4 + 3  # mirror; four steps, three of which have numbers
    shares = [whole[f"{number}_chosen"].mean() for number in range(4)]
    np.testing.assert_allclose(shares, [0.1, 0.2, 0.2, 0.1], atol=0.06)
    assert set(np.unique(whole["1_window"])) == {3, 5}
    assert 56 <= whole["0_size"].min() < whole["0_size"].max() <= 90
    assert 0.4 < whole["mirror"].mean() < 0.6


@pytest.mark.parametrize("augment", [RandomFlip(), Pipeline([Grey(), Flip()]), Pipeline([Flip(), Flip(), Flip()])])
def test_mirrors_are_those_of_the_plain_augmentation(augment: Any) -> None:
    keys = stream(5, 1, np.arange(60))
    ramp = torch.arange(16, dtype=torch.uint8).expand(60, 3, 2, 16)
    mirrored = augment(ramp, keys)[:, 0, 0, 0] > augment(ramp, keys)[:, 0, 0, -1]
    np.testing.assert_array_equal(draw(augment, keys, (3, 2, 16))["mirror"], mirrored.numpy())


def test_grey_pictures_have_no_colours_to_change() -> None:
    given = draw(augmentation("insightface_dali"), stream(0, np.arange(4)), (1, 32, 32))
    assert {name.partition("_")[0] for name in given} == {"mirror", "0", "1"}


# --- DALI's batches ---------------------------------------------------------------------------------------------------


@with_dali
@pytest.mark.parametrize("augment", ["none", "flip"])
def test_plain_and_mirrored_images_are_those_of_the_plain_loader(faces: Path, augment: str) -> None:
    for epoch in (0, 2):
        plain, ours = both(faces, epoch, augment=augment)
        assert float(differences(plain, ours).max()) < 1e-3  # both decode with libjpeg-turbo
    assert opened(faces, "dali").num_classes == CLASSES


# How far a picture may be from the plain loader's, in levels of 256.
EFFECTS: list[tuple[Effect, float]] = [
    (Flip(), 1e-3),
    (Blur(probability=0.6), 1e-2),
    (HueSaturation(probability=0.6, hue=(0.0, 40.0), saturation=(0.5, 1.5)), 1e-2),
    (Grey(probability=0.6), 1e-2),
    (LowResolution(probability=0.6, side=(0.3, 0.9)), 2.0),
]


@with_dali
@pytest.mark.parametrize(("effect", "levels"), EFFECTS, ids=lambda value: type(value).__name__)
def test_every_effect_is_that_of_the_plain_loader(faces: Path, effect: Effect, levels: float) -> None:
    plain, ours = both(faces, augment=Pipeline([effect]))
    assert float(differences(plain, ours).max()) < levels
    untouched, _ = both(faces, augment="none")
    changed = differences(untouched, ours).amax((1, 2, 3))
    assert 0.3 < float((changed > 3).float().mean()) < 0.8  # those that were chosen; the others are left as they are
    assert float(changed[changed <= 3].max()) < 1e-3


@with_dali
@pytest.mark.parametrize("channels", [3, 1])
def test_the_preset_is_that_of_the_plain_loader(faces: Path, channels: int) -> None:
    source = Files(path=faces, check=0, image_size=SIZE, channels=channels)
    for epoch in range(3):
        far = differences(*both(source, epoch, augment="insightface_dali"))
        assert float(far.max()) < 1.5
        assert float(far.mean()) < 0.05


@with_dali
@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_images_of_another_size_are_fitted_as_the_plain_loader_does(tmp_path: Path, fit: Any) -> None:
    # Not JPEG, which the plain loader decodes at a fraction of its size if that is large enough.
    folder = make_faces(tmp_path / "large", size=(70, 90), kind="PNG")
    far = differences(*both(Files(path=folder, check=0, image_size=SIZE, fit=fit)))
    assert float(far.mean()) < 0.3
    assert float(far.max()) < 2


@with_dali
@pytest.mark.parametrize("format", ["recordio", "flat", "list", "parquet", "webdataset", "huggingface"])
def test_the_files_may_have_any_format(faces: Path, tmp_path: Path, format: str) -> None:
    if format == "huggingface":
        datasets = pytest.importorskip("datasets")
        images = FolderImages(faces)
        rows = {"image": [{"bytes": images.read(i), "path": None} for i in range(len(images))], "label": images.labels}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "made")
        kind, path = format, tmp_path / "made"
    else:
        pytest.importorskip({"parquet": "pyarrow"}.get(format, "numpy"))
        kind, layout = ("recordio", "flat") if format == "flat" else (format, "headered")
        path = convert(FolderImages(faces), tmp_path / "made", kind, layout=layout, shard_size=20, progress=False)
        path = path / "list.tsv" if format == "list" else path
    source = Files(path=path, check=0, image_size=SIZE, format=kind)
    assert float(differences(*both(source)).max()) < 1e-3


@with_dali
def test_other_codecs_are_decoded_too(tmp_path: Path) -> None:
    kinds = [("RGB", "PNG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "WEBP"), ("P", "PNG"), ("RGB", "BMP")]
    for label in range(2):
        (tmp_path / str(label)).mkdir()
        for number, (mode, kind) in enumerate(kinds):
            (tmp_path / str(label) / f"{number}.{kind.lower()}").write_bytes(encoded(number + label, SIZE, mode, kind))
        turned = Image.open(io.BytesIO(encoded(label)))
        turned.getexif()[0x0112] = 3  # a tag that says it is upside down, which the plain loader leaves alone
        turned.save(tmp_path / str(label) / "tag.jpg", quality=90, exif=turned.getexif())
    far = differences(*both(tmp_path, augment="none", batch_size=7))
    assert float(far.max()) < 3


@with_dali
def test_two_ranks_together_see_what_one_sees(faces: Path) -> None:
    data = opened(faces).data

    def epoch(rank: int, world_size: int) -> list[Any]:
        plan = BatchPlan(
            order=ShuffledOrder(len(data.train), 3), batch_size=12 // world_size, rank=rank, world_size=world_size
        )
        batches = TrainingBatches(data.train, data.labels, plan, augmentation("insightface_dali"), seed=3)
        loader = Dali(threads=1).loader(batches, torch.device("cpu"))
        loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
        return list(loader)

    whole, parts = epoch(0, 1), [epoch(rank, 2) for rank in range(2)]
    assert len(whole) == CLASSES * EACH // 12
    for step, (images, labels) in enumerate(whole):
        assert torch.equal(torch.cat([part[step][1] for part in parts]), labels)
        assert torch.equal(torch.cat([part[step][0] for part in parts]), images)


@with_dali
def test_an_epoch_goes_on_where_it_was_left(faces: Path) -> None:
    def loader() -> TrainingLoader:
        return opened(faces, "dali", augment="insightface_dali").train_dataloader()

    whole = loader()
    whole.sampler.set_epoch(4)  # type: ignore[attr-defined]
    every = list(whole)
    first = loader()
    first.sampler.set_epoch(4)  # type: ignore[attr-defined]
    running = iter(first)
    for _ in range(2):
        next(running)
    state = first.state_dict()
    assert state == {"epoch": 4, "batch": 2, "length": len(every)}  # not what is made ahead
    rest = loader()
    rest.load_state_dict(state)
    for (images, labels), (again, other) in zip(every[2:], rest, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, other)
    # The loader that was left begins anew, and its second epoch is made by the same pipeline as its first.
    running.close()  # type: ignore[attr-defined]
    for _ in range(2):
        first.sampler.set_epoch(4)  # type: ignore[attr-defined]
        assert all(torch.equal(a[0], b[0]) for a, b in zip(every, first, strict=True))


@with_dali
def test_processes_that_read_change_nothing(faces: Path) -> None:
    loaders = [opened(faces, "dali", num_workers=n, augment="insightface_dali").train_dataloader() for n in (0, 2)]
    assert len(loaders[0]) == len(loaders[1]) == CLASSES * EACH // 8
    for (images, labels), (others, same) in zip(*loaders, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, same)


@with_dali
def test_the_last_batch_may_be_smaller(faces: Path) -> None:
    plain, ours = both(faces, drop_last=False)
    assert [len(labels) for _, labels in ours] == [8] * 5 + [2]
    assert float(differences(plain, ours).max()) < 1e-3


@with_dali
def test_mixed_batches_parts_and_repeats_are_those_of_the_plain_loader(faces: Path, tmp_path: Path) -> None:
    assert float(differences(*both(faces, mix={"mixup": 0.4, "cutmix": 1.0})).max()) < 1e-2
    assert float(differences(*both(faces, repeats=2)).max()) < 1e-3
    other = make_faces(tmp_path / "others", seed=1000)
    sources = {path.name: Files(path=path, check=0, image_size=SIZE) for path in (faces, other)}
    plain, ours = both(Joint(sources=sources, labels="separate"))
    assert float(differences(plain, ours).max()) < 1e-3
    assert torch.cat([part for _, _, part in ours]).unique().tolist() == [0, 1]


@with_dali
@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda data: data[:-50], "the image is cut off"),
        (lambda data: b"not an image", "cannot be decoded"),
        (lambda data: encoded(0, (30, 30)), "has 30 x 30 pixels instead of 32 x 40"),
    ],
)
def test_a_broken_image_stops_the_run_by_its_name(tmp_path: Path, damage: Any, text: str) -> None:
    broken = make_faces(tmp_path / "faces") / "person2" / "3.jpg"
    broken.write_bytes(damage(broken.read_bytes()))
    loader = opened(tmp_path / "faces", "dali", drop_last=False).train_dataloader()
    with pytest.raises(BrokenImageError, match=f"person2.3.jpg: .*{text}"):
        list(loader)


@with_dali
def test_a_format_that_dali_does_not_know_is_said(tmp_path: Path) -> None:
    folder = make_faces(tmp_path / "faces")
    (folder / "person0" / "0.jpg").write_bytes(encoded(0, kind="GIF"))
    with pytest.raises(RuntimeError, match="whose images the plain loader can decode"):
        list(opened(folder, "dali", drop_last=False).train_dataloader())


class _Recorder(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * SIZE[0] * SIZE[1], 1)
        self.seen: list[tuple[int, list[int], float]] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        self.seen.append((self.current_epoch, labels.tolist(), float(images.double().sum())))
        loss: Tensor = self.layer(images.flatten(1)).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-4)


@with_dali
def test_a_trainer_cannot_tell(faces: Path, tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    def fit(choice: Any, start: int | None = None, **kwargs: Any) -> list[tuple[int, list[int], float]]:
        model = _Recorder()
        saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        trainer = L.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_epochs=2,
            callbacks=[saver], default_root_dir=tmp_path, **kwargs,
        )  # fmt: skip
        path = None if start is None else tmp_path / f"step={start}.ckpt"
        trainer.fit(model, opened(faces, choice), ckpt_path=path, weights_only=False)
        return model.seen

    plain, ours = fit(None), fit("dali")
    assert len(ours) == 2 * (CLASSES * EACH // 8)
    assert [seen[:2] for seen in ours] == [seen[:2] for seen in plain]
    assert [seen[2] for seen in ours] == pytest.approx([seen[2] for seen in plain], abs=1e-2)
    assert fit("dali", 3) == ours[3:]
    few = fit("dali", overfit_batches=2)
    assert [seen[1:] for seen in few[:2]] == [seen[1:] for seen in few[2:]]


@with_dali
def test_the_command_trains_with_it_by_one_word(faces: Path, tmp_path: Path) -> None:
    words = [
        "experiment=none", "data=folder", f"data.source.path={faces}", "data.source.test_share=0",
        f"data.source.image_size=[{SIZE[0]},{SIZE[1]}]", "data.batch_size=8", "data.augment=insightface_dali",
        "backbone.embedding_dim=8", "+backbone.options.widths=[8,8]", "+backbone.options.depths=[0,0]",
        "trainer.accelerator=cpu", "trainer.max_epochs=1", "trainer.enable_progress_bar=false", "plots=false",
        "logger=none",
    ]  # fmt: skip
    try:
        losses = {
            name: train(*words, f"output_dir={tmp_path / name}", *word)["metrics"]["train/loss"]
            for name, word in (("plain", []), ("dali", ["data.loader=dali"]))
        }
    finally:
        if dist.is_initialized():  # a Trainer leaves its group of one behind
            dist.destroy_process_group()
    assert losses["dali"] == pytest.approx(losses["plain"], rel=1e-2)


@with_dali
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("augment", ["flip", "insightface_dali"])
def test_on_a_gpu_the_batch_is_there_already(faces: Path, augment: str) -> None:
    plain = list(opened(faces, augment=augment).train_dataloader())
    ours = list(opened(faces, "dali", augment=augment).train_dataloader())
    for (images, labels), (others, same) in zip(plain, ours, strict=True):
        assert others.device.type == same.device.type == "cuda"
        assert torch.equal(same.cpu(), labels)
        assert float((others.cpu() - images).abs().mean()) < 3 * LEVEL  # another decoder
