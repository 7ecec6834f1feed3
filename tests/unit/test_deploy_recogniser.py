"""A recogniser: the pictures of training byte for byte, embeddings of the module, comparisons, names."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_pfc import unreported
from lightning_pfc.calibration import NotCalibratedError, Threshold, Thresholds
from lightning_pfc.data.formats import BrokenImageError, FormatError, open_images
from lightning_pfc.data.formats.decoded import DecodedImages
from lightning_pfc.deploy import EngineError, ExportError, Recogniser
from lightning_pfc.deploy import engines as engines_module
from lightning_pfc.deploy.description import ModelDescription
from lightning_pfc.module import PartialFCModule
from lightning_pfc.runs.network import EmbeddingModel


@pytest.fixture(scope="module")
def recogniser(export_folder: Path) -> Recogniser:
    return Recogniser.load(export_folder)


@pytest.fixture(scope="module")
def module(run_folder: Path) -> PartialFCModule:
    loaded: PartialFCModule = PartialFCModule.load_from_checkpoint(
        run_folder / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu"
    )
    return loaded.eval()


def files(folder: Path, count: int) -> list[Path]:
    return sorted(folder.rglob("*.*g"))[:count]


def cosines(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def threshold(name: str = "far=1e-2", **values: Any) -> Threshold:
    given: dict[str, Any] = {"kind": "verification", "value": 0.5, "rate": 0.01, "interval": (0.005, 0.02), **values}
    return Threshold(name=name, **given)


def with_thresholds(recogniser: Recogniser, *thresholds: Threshold, **options: Any) -> Recogniser:
    known = Thresholds({t.name: t for t in thresholds})
    description = recogniser.description.changed(thresholds=known)
    return Recogniser(recogniser.network, description, recogniser.folder, **options)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_are_those_of_training_byte_for_byte(recogniser: Recogniser, pictures: Path) -> None:
    encoded = open_images(pictures)
    table = DecodedImages(encoded, size=(24, 24), channels=3, fit="crop")
    trained = table.fetch(np.arange(len(encoded))).permute(0, 2, 3, 1).numpy()
    for place in range(0, len(encoded), 7):
        mine = recogniser.prepare(encoded.locate(place))
        assert (mine == trained[place]).all(), encoded.locate(place)
        assert (recogniser.prepare(encoded.read(place)) == trained[place]).all()
        assert (recogniser.prepare(Path(encoded.locate(place))) == trained[place]).all()


def test_what_others_decoded_is_fitted_as_training_does(recogniser: Recogniser, pictures: Path) -> None:
    for path in files(pictures, 8):
        with Image.open(path) as opened:  # but nothing more: then the file is still there
            assert (recogniser.prepare(opened) == recogniser.prepare(path)).all()
            assert np.asarray(opened).ndim == 3
    png = next(path for path in files(pictures, 8) if path.suffix == ".png")
    with Image.open(png) as image:
        array = np.asarray(image)
        assert (recogniser.prepare(image.copy()) == recogniser.prepare(png)).all()
    assert (recogniser.prepare(array) == recogniser.prepare(png)).all()


def test_grey_becomes_colour_and_colour_grey(recogniser: Recogniser) -> None:
    grey = np.arange(24 * 24, dtype=np.uint32).reshape(24, 24).astype(np.uint8)
    found = recogniser.prepare(grey)
    assert found.shape == (24, 24, 3)
    assert (found == grey[:, :, None]).all()
    one_channel = recogniser.description.preprocessing.changed(channels=1)
    other = Recogniser(recogniser.network, recogniser.description.changed(preprocessing=one_channel))
    assert (other.prepare(np.repeat(grey[:, :, None], 3, 2))[:, :, 0] == grey).all()
    assert (other.prepare(Image.fromarray(grey))[:, :, 0] == grey).all()


def test_what_pillow_has_decoded_becomes_8_bits_as_a_file_does(recogniser: Recogniser) -> None:
    """Pillow's own ``convert`` cuts 16 bits off at 255: a white picture."""
    deep = np.random.default_rng(0).integers(0, 1 << 16, (24, 24)).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        exif = Image.Exif()
        exif[0x0112] = 8
        file = io.BytesIO()
        Image.fromarray(deep).save(file, kind, exif=exif)
        with Image.open(file) as image:
            image.load()
            for decoded in (image, image.copy()):
                assert (recogniser.prepare(decoded)[:, :, 0] == np.rot90(deep >> 8)).all(), kind
    big_end = Image.frombytes("I;16B", (24, 24), deep.astype(">u2").tobytes())
    assert (recogniser.prepare(big_end)[:, :, 0] == deep >> 8).all()
    for unknown in (deep.astype(np.int32), deep.astype(np.float32)):
        with pytest.raises(BrokenImageError, match=r"the picture's pixels are .* nothing says which is white"):
            recogniser.prepare(Image.fromarray(unknown))


def test_a_tagged_pil_image_is_turned(recogniser: Recogniser) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    plain, tagged = io.BytesIO(), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(plain, "PNG")
    Image.fromarray(pixels).save(tagged, "PNG", exif=exif)
    with Image.open(plain) as upright, Image.open(tagged) as image:
        image.load()
        assert (recogniser.prepare(image) == np.rot90(recogniser.prepare(upright), -1)).all()


@pytest.mark.parametrize(
    ("picture", "error", "words"),
    [
        (b"no picture", BrokenImageError, "image"),
        (3, TypeError, "not int"),
        (np.zeros((4, 4), np.float32), ValueError, "float32"),
        (np.zeros((4, 4, 2), np.uint8), ValueError, r"\(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"\(0, 4, 3\)"),
        ("/nowhere/a.png", FormatError, "/nowhere/a.png"),
    ],
)
def test_what_is_no_picture_is_named(recogniser: Recogniser, picture: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        recogniser.embed([picture])


@pytest.mark.parametrize("thing", [None, 3, {"a": "b"}, io.BytesIO(b"a picture\n of two lines")])
def test_what_holds_no_pictures_is_named(recogniser: Recogniser, thing: Any) -> None:
    with pytest.raises(TypeError, match=rf"a picture is a path, .*, not {type(thing).__name__}"):
        recogniser.embed(thing)


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_the_page_that_was_turned_to_is_taken(recogniser: Recogniser, kind: str) -> None:
    height, width = recogniser.input_shape[1:]
    pages = [Image.new("RGB", (width, height), color) for color in ("black", "white")]
    file = io.BytesIO()
    pages[0].save(file, kind, save_all=True, append_images=pages[1:])
    with Image.open(file) as image:
        assert recogniser.prepare(image).max() == 0
    with Image.open(file) as image:
        image.seek(1)
        assert recogniser.prepare(image).min() == 255


def test_counts_are_counts(recogniser: Recogniser, export_folder: Path, pictures: Path) -> None:
    picture = pictures / "id01" / "p0.png"
    wrong: tuple[Any, ...] = (2.5, True)
    for value in wrong:
        with pytest.raises(TypeError, match=f"batch_size={value} must be a whole number"):
            recogniser.embed([picture] * 3, batch_size=value)
        with pytest.raises(TypeError, match=f"k={value} must be a whole number"):
            recogniser.search(picture, value)
    with pytest.raises(ValueError, match="max_pixels=0 must be at least 1"):
        Recogniser.load(export_folder, max_pixels=0)
    with pytest.raises(ValueError, match="give photos=True"):
        Recogniser.load(export_folder, detector="yunet.onnx")


# --- embeddings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 70])
def test_embeddings_are_the_modules(
    recogniser: Recogniser, module: PartialFCModule, pictures: Path, count: int
) -> None:
    paths = files(pictures, count)
    found = recogniser.embed(paths)
    images = np.stack([recogniser.prepare(path) for path in paths])
    with torch.no_grad():
        wanted = module(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1).numpy()
    assert found.shape == (count, 16)
    assert found.dtype == np.float32
    assert cosines(found, wanted).min() > 1 - 1e-5
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "torch"])
def test_every_engine_gives_the_same(recogniser: Recogniser, export_folder: Path, pictures: Path, engine: str) -> None:
    other = Recogniser.load(export_folder, engine=engine, threads=1)
    assert other.network.name == engine
    paths = files(pictures, 5)
    assert cosines(other.embed(paths), recogniser.embed(paths)).min() > 1 - 1e-6
    assert other.model_id == recogniser.model_id


def test_threads_that_wait_leave_the_processor_to_others(export_folder: Path) -> None:
    session = engines_module.OnnxRuntime(export_folder / "model.onnx", threads=2)._session
    assert session.get_session_options().get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_all_kinds_and_sizes_at_once_from_a_generator(recogniser: Recogniser, pictures: Path) -> None:
    paths = files(pictures, 8)

    def kinds() -> Iterator[Any]:
        for number, path in enumerate(paths):
            with Image.open(path) as image:
                yield (path, str(path), path.read_bytes(), image)[number % 4]

    found = recogniser.embed(kinds(), batch_size=3)
    wanted = recogniser.embed(paths)
    assert found.shape == (8, 16)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    one_by_one = np.concatenate(list(recogniser.embed_batches(paths, batch_size=3)))
    np.testing.assert_allclose(one_by_one, wanted, rtol=1e-5, atol=1e-6)


def test_one_picture_is_a_list_of_one(recogniser: Recogniser, pictures: Path) -> None:
    path = files(pictures, 1)[0]
    with Image.open(path) as image:
        array = np.asarray(image)
    for picture in (path, str(path), path.read_bytes(), array):
        assert recogniser.embed(picture).shape == (1, 16)
    assert recogniser.embed(np.stack([array, array])).shape == (2, 16)
    assert recogniser.embed([]).shape == (0, 16)


def test_flip_and_length_by_option(recogniser: Recogniser, export_folder: Path, pictures: Path) -> None:
    paths = files(pictures, 4)
    plain = recogniser.embed(paths)
    mirrored = recogniser.embed([recogniser.prepare(path)[:, ::-1] for path in paths])
    summed = Recogniser.load(export_folder, flip=True).embed(paths)
    np.testing.assert_allclose(summed, plain + mirrored, rtol=1e-4, atol=1e-5)
    unit = Recogniser.load(export_folder, normalize=True).embed(paths)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)
    assert abs(np.linalg.norm(plain, axis=1) - 1).max() > 1e-3
    assert Recogniser.load(export_folder, flip=True).model_id != recogniser.model_id


def test_the_folder_is_one_of_the_hub(export_folder: Path, module: PartialFCModule) -> None:
    model = EmbeddingModel.from_pretrained(export_folder)
    images = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        assert torch.equal(model(images), module(images))
    assert not model.training
    assert (export_folder / "README.md").read_text().startswith("---\nlicense: ")
    with pytest.raises(ExportError, match="neither a folder nor"):
        EmbeddingModel.from_pretrained("/nowhere")


def test_weights_are_a_file_like_others_and_a_full_disk_is_the_system_s_error(
    export_folder: Path, tmp_path: Path
) -> None:
    model = EmbeddingModel.from_pretrained(export_folder)
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    assert weights.stat().st_mode == (tmp_path / "config.json").stat().st_mode  # whoever reads the one reads the other
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, of Linux")
    weights.unlink()
    weights.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as raised:
        model.save_pretrained(tmp_path)
    assert raised.value.filename == str(weights)


# --- decisions --------------------------------------------------------------------------------------------------------


def test_never_calibrated_says_neither_yes_nor_no(recogniser: Recogniser, pictures: Path) -> None:
    a, b = files(pictures, 2)
    found = recogniser.compare(a, b)
    assert (found.same, found.far) == (None, None)
    assert found.score == pytest.approx(cosines(recogniser.embed(a), recogniser.embed(b))[0], abs=1e-6)
    with pytest.raises(NotCalibratedError, match=r"never calibrated.*calibrate\.far"):
        recogniser.compare(a, b, threshold="far=1e-4")


def test_a_threshold_is_taken_by_name(recogniser: Recogniser, pictures: Path) -> None:
    a, b = files(pictures, 2)
    score = recogniser.compare(a, b).score
    low, high = threshold("far=1e-2", value=score - 0.01), threshold("far=1e-3", value=score + 0.01, rate=1e-3)
    calibrated = with_thresholds(recogniser, low, high)
    assert calibrated.compare(a, b)[1:] == (True, 0.01)
    assert calibrated.compare(a, b, threshold="far=1e-3")[1:] == (False, 1e-3)
    assert calibrated.compare(recogniser.embed(a)[0], b).same is True
    with pytest.raises(NotCalibratedError, match=r"Did you mean 'far=1e-3'\?"):
        calibrated.compare(a, b, threshold="far=1e-4")


def test_a_threshold_of_other_embeddings_is_not_used(recogniser: Recogniser, pictures: Path) -> None:
    a, b = files(pictures, 2)
    calibrated = with_thresholds(recogniser, threshold(flip="sum"))
    assert calibrated.compare(a, b).same is None
    with pytest.raises(NotCalibratedError, match="chosen with flip=sum"):
        calibrated.compare(a, b, threshold="far=1e-2")
    assert with_thresholds(recogniser, threshold(flip="sum"), flip=True).compare(a, b).far == 0.01


def test_an_embedding_of_another_model_is_refused(recogniser: Recogniser, pictures: Path) -> None:
    with pytest.raises(ValueError, match="8 numbers is not of this model"):
        recogniser.compare(np.ones(8, np.float32), files(pictures, 1)[0])


def test_search_finds_the_class_by_name(recogniser: Recogniser, module: PartialFCModule, pictures: Path) -> None:
    names = recogniser.centers.names
    assert len(names) == 36
    assert set(names) <= {path.name for path in pictures.iterdir()}
    hits = 0
    for name in names:
        row = recogniser.embed(pictures / name / "p0.png")[0]
        found = recogniser.search(row, k=3)
        weight = torch.nn.functional.normalize(module.head.weight.detach())
        scores = weight @ torch.nn.functional.normalize(torch.from_numpy(row), dim=0)
        wanted = scores.topk(3)
        assert [match.identity for match in found] == [names[i] for i in wanted.indices.tolist()]
        assert [match.score for match in found] == pytest.approx(wanted.values.tolist(), abs=1e-5)
        assert found[0].same is None
        hits += found[0].identity == name
    assert hits > 18  # of 36; chance is 1
    assert len(recogniser.search(pictures / names[0] / "p0.png", k=1000)) == 36


# --- what is wrong with a folder --------------------------------------------------------------------------------------


@pytest.fixture
def copied(export_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(export_folder, tmp_path / "copy"))


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "centers.safetensors", "classes.txt"])
def test_a_changed_file_is_named(copied: Path, name: str, pictures: Path) -> None:
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    engine = "torch" if name == "model.safetensors" else "onnxruntime"
    with pytest.raises(ExportError, match=rf"{name}: was changed after the export \(sha256"):
        Recogniser.load(copied, engine=engine).search(files(pictures, 1)[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda about: about.pop("model"), "model is NoneType"),
        (lambda about: about.update(version=2), "has version 2"),
        (lambda about: about.update(format="x"), "is no description of an export"),
        (lambda about: about["model"].update(file="../model.onnx"), "is not the name of a file"),
        (lambda about: about["model"].update(file="/etc/passwd"), "is not the name of a file"),
        (lambda about: about["model"].update(width=0), "model.width=0"),
        (lambda about: about["model"].update(precision="float8"), "model.precision='float8'"),
        (lambda about: about["sha256"].pop("model.onnx"), "no sha256 of model.onnx"),
        (lambda about: about["preprocessing"].update(size=[0, 4]), "preprocessing"),
        (lambda about: about.update(thresholds={"far=1e-4": {"value": "x"}}), "far=1e-4"),
        (lambda about: about.update(thresholds=[]), "thresholds"),
    ],
)
def test_a_damaged_description_is_named(copied: Path, change: Any, words: str) -> None:
    about = json.loads((copied / "model.json").read_text())
    change(about)
    (copied / "model.json").write_text(json.dumps(about))
    with pytest.raises(ExportError, match=words):
        Recogniser.load(copied)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_description_that_is_no_json_is_named(copied: Path, content: bytes) -> None:
    (copied / "model.json").write_bytes(content)
    with pytest.raises(ExportError, match=r"model\.json: "):
        Recogniser.load(copied)


@pytest.mark.parametrize("name", ["model.onnx", "model.json"])
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    os.remove(copied / name)
    with pytest.raises(ExportError, match=name):
        Recogniser.load(copied)


def write_network(folder: Path, *nodes: tuple[str, list[str], list[str]], kind: int = 1, **constants: Any) -> None:
    """Another network in an export, with the digest that fits: it takes (b, 3, 24, 24)."""
    from onnx import helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node(*node) for node in nodes],
        "g",
        [helper.make_tensor_value_info("images", kind, ["b", 3, 24, 24])],
        [helper.make_tensor_value_info("embeddings", kind, None)],
        [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    about = json.loads((folder / "model.json").read_text())
    about["sha256"]["model.onnx"] = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    (folder / "model.json").write_text(json.dumps(about))


FLAT = ("Flatten", ["images"], ["embeddings"])


@pytest.mark.parametrize(
    ("nodes", "constants", "words"),
    [
        ([FLAT], {}, "for one picture, model.json says"),
        ([("Identity", ["images"], ["embeddings"])], {}, r"float32 \(1, 3, 24, 24\) for one picture"),
        ([FLAT], {"kind": 7}, "cannot compute it"),
        (
            [("Expand", ["images", "shape"], ["much"]), ("ReduceSum", ["much"], ["embeddings"])],
            {"shape": [10**5, 10**5, 24, 24]},
            "cannot compute it|does not take it",
        ),
        ([("Nothing", ["images"], ["embeddings"])], {}, "does not take it"),
    ],
)
def test_a_network_that_is_another_is_refused(copied: Path, nodes: Any, constants: Any, words: str) -> None:
    write_network(copied, *nodes, **constants)
    with pytest.raises(ExportError, match=words) as caught:
        Recogniser.load(copied)
    assert "\n" not in str(caught.value)


def test_pictures_of_another_size_than_the_network_s_are_refused(copied: Path) -> None:
    about = json.loads((copied / "model.json").read_text())
    about["preprocessing"]["size"] = [16384, 16384]
    (copied / "model.json").write_text(json.dumps(about))
    with pytest.raises(ExportError, match=r"takes pictures \(3, 24, 24\), model.json says \(3, 16384, 16384\)"):
        Recogniser.load(copied)


def test_numbers_that_are_none_are_not_compared(recogniser: Recogniser) -> None:
    row = np.full(recogniser.width, np.nan, np.float32)
    with pytest.raises(ValueError, match="not finite"):
        recogniser.compare(row, row)


def test_an_engine_that_is_not_there(export_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="engine='tensorrt' does not exist; there are onnxruntime, openvino"):
        Recogniser.load(export_folder, engine="tensorrt")

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(unreported.importlib, "import_module", missing)
    with pytest.raises(EngineError, match=r"pip install openvino"):
        Recogniser.load(export_folder, engine="openvino")


def test_the_description_survives_writing_and_reading(export_folder: Path, tmp_path: Path) -> None:
    about = ModelDescription.read(export_folder / "model.json").changed(
        thresholds=Thresholds({"far=1e-2": threshold(value_interval=(0.1, 0.2), unit="pairs")})
    )
    about.write(tmp_path / "model.json")
    again = ModelDescription.read(tmp_path / "model.json")
    assert again.thresholds["far=1e-2"] == about.thresholds["far=1e-2"]
    assert again.changed(thresholds=about.thresholds) == about
