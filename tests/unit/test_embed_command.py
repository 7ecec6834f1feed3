"""pfc-embed: exports, runs and ONNX files; rows of the right picture; it goes on; rejects in a list."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from lightning_pfc.commands.data import main as data_main
from lightning_pfc.commands.embed import main
from lightning_pfc.commands.eval import evaluate
from lightning_pfc.deploy import Recogniser, embedders
from lightning_pfc.deploy.embedding import embed_images
from lightning_pfc.faces import FaceCutter, open_detector
from tests.detector_files import HALF, plant, write_yunet

pytest.importorskip("cv2", reason="OpenCV turns and scales faces")


@pytest.fixture
def people(pictures: Path, tmp_path: Path) -> Path:
    """Five identities, one of their pictures broken and one no picture."""
    for number in range(5):
        shutil.copytree(pictures / f"id{number:02d}", tmp_path / "people" / f"id{number:02d}")
    broken = tmp_path / "people" / "id01" / "p1.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    (tmp_path / "people" / "id03" / "p0.png").write_text("no picture")
    return tmp_path / "people"


def test_rows_labels_and_paths(
    export_folder: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.npz"
    assert main([str(export_folder), str(people), str(out), "--batch-size", "3", "--workers", "2"]) == 0
    said = capsys.readouterr().out
    assert "18 embeddings of 20 pictures" in said
    assert "2 pictures gave none, listed in" in said
    with np.load(out) as found:
        assert set(found.files) == {"emb", "label", "path", "names"}
        assert found["names"][found["label"]].tolist() == [path.split("/")[0] for path in found["path"].tolist()]
        wanted = Recogniser.load(export_folder).embed([people / path for path in found["path"].tolist()])
        np.testing.assert_allclose(found["emb"], wanted, atol=1e-5)
    lines = (tmp_path / "out.npz.rejected.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["id01/p1.jpg", "id03/p0.png"]
    assert not (tmp_path / "out.npz.partial").exists()
    # What takes such files takes it.
    assert evaluate(
        "embedder=none",
        "+protocols.mine.type=all_pairs",
        f"+protocols.mine.path={out}",
        f"output_dir={tmp_path / 'eval'}",
        "plots=false",
    )["metrics"]
    assert data_main(["clean", str(out), str(tmp_path / "suspects.tsv"), "--quiet"]) == 0


def test_how_large_a_picture_may_be(
    export_folder: Path, run_folder: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (90, 90)).save(people / "id00" / "large.png")
    for number, model in enumerate((export_folder, run_folder, export_folder / "model.onnx")):
        out = tmp_path / f"{number}.npz"
        assert main([str(model), str(people), str(out), "--max-pixels", "8099"]) == 0
        capsys.readouterr()
        lines = (tmp_path / f"{number}.npz.rejected.tsv").read_text().splitlines()
        assert "90 x 90 pixels, more than max_pixels=8099" in lines[0]
        assert main([str(model), str(people), str(tmp_path / f"{number}b.npz"), "--max-pixels", "8100"]) == 0
        assert "large.png" not in (tmp_path / f"{number}b.npz.rejected.tsv").read_text()
    for wrong in ("0", "-5", "1e6", str(1 << 40)):
        with pytest.raises(SystemExit):
            main([str(export_folder), str(people), str(tmp_path / "x.npz"), "--max-pixels", wrong])
        assert "is no number from 1 to 134217728" in capsys.readouterr().err


def test_an_export_a_run_and_an_onnx_file_give_the_same(
    export_folder: Path, run_folder: Path, people: Path, tmp_path: Path
) -> None:
    found = {}
    for name, model in (("export", export_folder), ("run", run_folder), ("file", export_folder / "model.onnx")):
        assert main([str(model), str(people), str(tmp_path / f"{name}.npz"), "--flip", "--normalize"]) == 0
        with np.load(tmp_path / f"{name}.npz") as content:
            found[name] = content["emb"]
    np.testing.assert_allclose(np.linalg.norm(found["export"], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(found["run"], found["export"], atol=1e-5)
    np.testing.assert_allclose(found["file"], found["export"], atol=1e-5)


def test_it_goes_on_where_it_stopped(
    export_folder: Path,
    people: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [str(export_folder), str(people), str(tmp_path / "out.npz"), "--batch-size", "4"]
    assert main([*words[:2], str(tmp_path / "whole.npz")]) == 0
    calls: list[int] = []
    embed = embedders._Exported.embed_pixels

    def fails_third(self: Any, pixels: Any) -> Any:
        calls.append(len(pixels))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed(self, pixels)

    monkeypatch.setattr(embedders._Exported, "embed_pixels", fails_third)
    assert main(words) == 130
    assert not (tmp_path / "out.npz").exists()
    rows = tmp_path / "out.npz.partial" / "rows.f32"
    with rows.open("ab") as file:  # a batch whose lines were not written any more
        file.write(b"torn")
    capsys.readouterr()
    assert main(words) == 0
    assert "18 embeddings of 20 pictures, 8 of them before the interruption" in capsys.readouterr().out
    assert sum(calls[3:]) == 11
    with np.load(tmp_path / "out.npz") as found, np.load(tmp_path / "whole.npz") as wanted:
        np.testing.assert_allclose(found["emb"], wanted["emb"], atol=1e-5)
        for key in ("label", "path", "names"):
            np.testing.assert_array_equal(found[key], wanted[key])


@pytest.mark.parametrize("changed", ["replaced", "mended", "broken"])
def test_a_picture_with_other_bytes_is_embedded_anew(
    export_folder: Path,
    people: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changed: str,
) -> None:
    """Under its old name, while the command was interrupted: else its row would be that of another picture."""
    words = [str(export_folder), str(people), str(tmp_path / "out.npz"), "--batch-size", "4"]
    calls: list[int] = []
    embed = embedders._Exported.embed_pixels

    def fails_third(self: Any, pixels: Any) -> Any:
        calls.append(len(pixels))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed(self, pixels)

    monkeypatch.setattr(embedders._Exported, "embed_pixels", fails_third)
    assert main(words) == 130  # eight pictures are done, the sixth of them broken
    name = "id01/p1.jpg" if changed == "mended" else "id00/p2.png"
    assert (people / name).exists()
    (people / name).write_bytes(b"none" if changed == "broken" else (people / "id04" / "p0.png").read_bytes())
    capsys.readouterr()
    assert main(words) == 0
    kept = 5 if changed == "mended" else 2
    assert f"{kept} of them before the interruption" in capsys.readouterr().out
    assert main([*words[:2], str(tmp_path / "whole.npz")]) == 0
    with np.load(tmp_path / "out.npz") as found, np.load(tmp_path / "whole.npz") as wanted:
        assert found["path"].tolist() == wanted["path"].tolist()
        assert (name in found["path"].tolist()) == (changed != "broken")
        np.testing.assert_allclose(found["emb"], wanted["emb"], atol=1e-5)


@pytest.mark.parametrize("what", ["--normalize", "--flip", "--max-pixels=8100", "renamed", "moved"])
def test_what_was_begun_otherwise_is_not_gone_on_with(
    export_folder: Path,
    people: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    what: str,
) -> None:
    """Rows of two kinds, or rows under the names of other pictures, would lie in one file."""
    copy = tmp_path / "copy"
    shutil.copytree(people, copy)
    words = [str(export_folder), str(copy), str(tmp_path / "out.npz"), "--batch-size", "4"]

    def fails(self: Any, pixels: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(embedders._Exported, "embed_pixels", fails)
        assert main(words) == 130
    first = sorted(path for path in copy.rglob("*") if path.is_file())[0]
    if what == "renamed":
        first.rename(first.with_name("zz" + first.suffix))
    elif what == "moved":
        first.rename(sorted(path for path in copy.iterdir() if path.is_dir())[-1] / ("zz" + first.suffix))
    assert main([*words, what] if what.startswith("--") else words) == 1
    assert "left by a job of other words or files" in capsys.readouterr().err
    assert not (tmp_path / "out.npz").exists()


def test_parquet(export_folder: Path, people: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="writes the file")
    assert main([str(export_folder), str(people), str(tmp_path / "out.parquet")]) == 0
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["emb", "label", "name", "path"]
    assert table["path"].to_pylist()[0] == "id00/p0.png"
    wanted = Recogniser.load(export_folder).embed(people / "id00" / "p0.png")
    np.testing.assert_allclose(table["emb"].to_pylist()[0], wanted[0], atol=1e-5)


def test_faces_of_two_detectors_are_not_mixed(
    export_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_yunet(tmp_path / "yunet.onnx")
    model = onnx.load(first)
    model.producer_name = "another"
    onnx.save(model, tmp_path / "other.onnx")
    (tmp_path / "photos").mkdir()
    Image.fromarray(plant((200, 300), (96, 96))).save(tmp_path / "photos" / "a.png")
    words = [str(export_folder), str(tmp_path / "photos"), str(tmp_path / "out.npz"), "--photos", "--detector"]

    def fails(self: Any, pixels: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(embedders._Exported, "embed_pixels", fails)
        assert main([*words, str(first)]) == 130
    assert main([*words, str(tmp_path / "other.onnx")]) == 1
    assert "left by a job of other words or files" in capsys.readouterr().err
    assert main([*words, str(first)]) == 0


def test_photos(
    export_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = write_yunet(tmp_path / "yunet.onnx")
    (tmp_path / "photos").mkdir()
    photos = {
        "a.png": plant((200, 300), (96, 96)),
        "b.png": plant((200, 200)),
        "c.png": plant((200, 400), (80, 80), (304, 80)),
    }
    for name, photo in photos.items():
        Image.fromarray(photo).save(tmp_path / "photos" / name)
    words = [str(export_folder), str(tmp_path / "photos"), str(tmp_path / "out.npz"), "--photos"]
    assert main(words) == 1
    assert "has no face detector; give one" in capsys.readouterr().err
    assert main([*words, "--detector", str(detector), "--faces", "all"]) == 0
    assert "1 pictures gave none" in capsys.readouterr().out
    with np.load(tmp_path / "out.npz") as found:
        assert found["path"].tolist() == ["a.png", "c.png", "c.png"]
        rows = found["emb"]
    assert rows.shape == (3, 16)
    recogniser = Recogniser.load(export_folder)
    piece = photos["a.png"][96 - HALF : 96 + HALF, 96 - HALF : 96 + HALF]
    [face] = FaceCutter(open_detector(detector), size=recogniser.input_shape[1]).pixels(photos["a.png"])
    np.testing.assert_allclose(rows[0], recogniser.embed(face.pixels)[0], atol=1e-5)
    cosine = rows[0] @ recogniser.embed(piece)[0] / np.linalg.norm(rows[0]) / np.linalg.norm(recogniser.embed(piece))
    assert cosine > 0.5  # cut and made smaller in one step, or in two


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none", "{people}", "out.npz"], "none: is not there"),
        (["{export}", "none", "out.npz"], "no such file or folder: none"),
        (["{export}", "{people}", "out.txt"], "written as .npz or .parquet"),
        (["{export}", "{people}", "out.npz", "--batch-size", "0"], "batch_size=0"),
        (["{export}", "{people}", "out.npz", "--detector", "x.onnx"], "add --photos"),
        (["{run}", "{people}", "out.npz", "--engine", "openvino"], "pfc-export"),
        (["{people}/id00/p0.png", "{people}", "out.npz"], "is no model"),
        (["{people}", "{people}", "out.npz"], "neither model.json, as an export, nor checkpoints, as a run"),
        (["{export}", "{people}/id03", "out.npz", "--photos", "--detector", "x.onnx"], "no such detector"),
    ],
)
def test_what_is_wrong_is_one_line(
    export_folder: Path,
    run_folder: Path,
    people: Path,
    tmp_path: Path,
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    filled = [word.format(export=export_folder, people=people, run=run_folder) for word in words]
    assert main(filled) == 1
    error = capsys.readouterr().err
    assert said in error, error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("out.*"))


def test_nothing_readable_is_an_error(export_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad").mkdir()
    for name in ("a.png", "b.jpg"):
        (tmp_path / "bad" / name).write_text("no picture")
    assert main([str(export_folder), str(tmp_path / "bad"), str(tmp_path / "out.npz")]) == 1
    assert "not one of the 2 pictures gave an embedding; the first:" in capsys.readouterr().err
    assert not list(tmp_path.glob("out.npz*"))


def test_a_detector_without_a_cutter_is_refused(tmp_path: Path) -> None:
    nothing: Any = None
    with pytest.raises(ValueError, match="detector_file='d' is that of a cutter"):
        embed_images(nothing, nothing, tmp_path / "e.npz", detector_file="d")
    assert not list(tmp_path.iterdir())
