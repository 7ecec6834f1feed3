"""Packs for InsightFace's package, loaded by it, and the detector that lies beside a model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from lightning_pfc.commands.export import main
from lightning_pfc.data.preprocessing import Preprocessing
from lightning_pfc.deploy import ExportError, Recogniser
from lightning_pfc.deploy.pack import check_insightface, copy_detector, rename_first_nodes
from tests.deployed import train_run
from tests.detector_files import HALF, plant, write_scrfd, write_yunet

pytest.importorskip("cv2", reason="OpenCV turns and scales faces")


@pytest.fixture(scope="module")
def face_run(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A run on pictures of 112 x 112, as the package wants them."""
    words = ("data.source.image_size=112", "trainer.max_epochs=1", "data.batch_size=12")
    return train_run(tmp_path_factory.mktemp("face_run") / "run", pictures, *words)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory, face_run: Path) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    detector = write_scrfd(folder / "scrfd.onnx")
    words = ["--out", str(folder / "pack"), "--pack", "insightface", "--detector", str(detector)]
    assert main([str(face_run), *words]) == 0
    return folder / "pack"


def test_the_folder_names_its_detector(pack: Path) -> None:
    about = json.loads((pack / "model.json").read_text())
    assert about["detector"] == "detector.onnx"
    assert set(about["sha256"]) >= {"detector.onnx", "model.onnx"}
    nodes = onnx.load(pack / "model.onnx").graph.node[:8]
    assert not [node.name for node in nodes if node.name.startswith(("Sub", "Mul", "_minus", "_mul"))]


def test_photos_go_through_the_detector_of_the_export(pack: Path) -> None:
    photo = plant((300, 400), (80, 120))
    found = Recogniser.load(pack, photos=True).embed(photo)
    wanted = Recogniser.load(pack).embed(photo[120 - HALF : 120 + HALF, 80 - HALF : 80 + HALF])
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_insightface_loads_the_model_and_the_folder(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package itself, from PyPI."""
    for name in (
        "LD_LIBRARY_PATH",
        "NO_ALBUMENTATIONS_UPDATE",
        "ORT_DISABLE_TELEMETRY",
        "QT_QPA_FONTDIR",
        "QT_QPA_PLATFORM_PLUGIN_PATH",
    ):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # what it brings along sets some
    model_zoo = pytest.importorskip("insightface.model_zoo", reason="InsightFace's package is not installed")
    from insightface.app import FaceAnalysis  # type: ignore[import-not-found]

    pixels = np.random.default_rng(0).integers(0, 256, (5, 112, 112, 3), dtype=np.uint8)
    wanted = Recogniser.load(pack).embed(pixels)
    model = model_zoo.get_model(str(pack / "model.onnx"), providers=["CPUExecutionProvider"])
    assert model.taskname == "recognition"
    np.testing.assert_allclose(model.get_feat([image[:, :, ::-1] for image in pixels]), wanted, atol=1e-4)

    analysis = FaceAnalysis(name=str(pack), providers=["CPUExecutionProvider"])
    analysis.prepare(ctx_id=-1, det_size=(640, 640))
    photo = plant((640, 640), (160, 240), (400, 320))
    faces = sorted(analysis.get(np.ascontiguousarray(photo[:, :, ::-1])), key=lambda face: face.bbox[0])
    assert len(faces) == 2
    rows = Recogniser.load(pack, photos=True).embed(photo)
    alike = [face.embedding @ rows[0] / np.linalg.norm(face.embedding) / np.linalg.norm(rows[0]) for face in faces]
    assert max(alike) > 0.9999


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"size": (24, 24)}, "here 24 x 24"),
        ({"size": (96, 96)}, "here 96 x 96"),
        ({"size": (192, 192)}, "here 192 x 192"),
        ({"size": (120, 120)}, "here 120 x 120"),
        ({"size": (128, 112)}, "here 112 x 128"),
        ({"size": (112, 112), "channels": 1}, "here 1"),
        ({"size": (112, 112), "color": "bgr"}, "bgr"),
        ({"size": (112, 112), "mean": 0.0}, "mean and std are 127.5"),
    ],
)
def test_what_the_package_would_not_load_is_refused(words: dict, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        check_insightface(Preprocessing(**words), "onnx")
    check_insightface(Preprocessing(size=(112, 112)), "onnx")
    check_insightface(Preprocessing(size=(224, 224)), "onnx")


def test_the_first_nodes_get_names_that_tell_nothing(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    names = ["Sub_0", "Conv_1", "Mul_2", "_minus3", *["Relu"] * 4, "Mul_8"]
    nodes = [helper.make_node("Relu", ["x"], ["y"], name=name) for name in names]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [value], [])), tmp_path / "m.onnx")
    assert rename_first_nodes(tmp_path / "m.onnx") == 3
    found = [node.name for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert found == ["node_Sub_0", "Conv_1", "node_Mul_2", "node__minus3", *["Relu"] * 4, "Mul_8"]


def test_a_detector_must_be_one(tmp_path: Path, export_folder: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match="neither YuNet nor SCRFD"):
        copy_detector(export_folder / "model.onnx", tmp_path / "out", pack=None)
    yunet = write_yunet(tmp_path / "yunet.onnx")
    assert copy_detector(yunet, tmp_path / "out", pack=None) == "detector.onnx"
    with pytest.raises(ExportError, match="loads SCRFD detectors"):
        copy_detector(yunet, tmp_path / "out", pack="insightface")


def test_words_that_are_refused_at_once(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["--pack", "insightface"], "its package would not load this model"),
        (["--detector", "none.onnx"], "detector=none.onnx: no such file"),
    ):
        assert main([str(run_folder), "--out", str(tmp_path / "out"), *words]) == 1
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
