"""``pfc-gallery`` with what people give it: names that nobody can type, a disk without room."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("faiss", reason="needs faiss-cpu, of the extra serve")

from lightning_pfc.commands.gallery import main
from lightning_pfc.deploy import Recogniser
from lightning_pfc.gallery import Gallery, GalleryFullError, ModelRecord
from lightning_pfc.gallery.sqlite_store import SqliteStore
from tests.detector_files import plant, write_yunet
from tests.file_limit import no_file_over


@pytest.fixture
def odd(tmp_path: Path, pictures: Path) -> Path:
    """Folders of which two can be names of identities."""
    folder = tmp_path / "odd"
    for name in (b"ok", b"last", b"a\nb", b"a\tb", b" ", b"\xff\xfe"):
        made = os.fsencode(folder) + b"/" + name
        os.makedirs(made)
        shutil.copy(os.fsencode(pictures / "id01" / "p0.png"), made + b"/1.png")
    return folder


@pytest.fixture
def photographed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A folder with a photo of each of two people, and a detector."""
    for name in ("LD_LIBRARY_PATH", "QT_QPA_FONTDIR", "QT_QPA_PLATFORM_PLUGIN_PATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # OpenCV sets some
    pytest.importorskip("cv2", reason="needs OpenCV, of the extra data")
    folder = tmp_path / "photos"
    for seed, name in enumerate(("anna", "bert")):
        (folder / name).mkdir(parents=True)
        Image.fromarray(plant((300, 400), (80 + 160 * seed, 120), seed=seed)).save(folder / name / "1.png")
    return folder, write_yunet(tmp_path / "yunet.onnx")


def test_a_gallery_of_photos_is_searched_with_photos(
    export_folder: Path,
    photographed: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As if it had been said again: a photo whose face was not cut out is near to nobody's."""
    folder, detector = photographed
    gallery = str(tmp_path / "gallery")
    monkeypatch.chdir(detector.parent)  # the detector is found from elsewhere too
    words = ["--model", str(export_folder), "--photos", "--detector", detector.name]
    assert main(["build", gallery, str(folder), *words]) == 0
    monkeypatch.chdir("/")
    query = str(folder / "bert" / "1.png")

    def best(*words: str) -> dict[str, Any]:
        capsys.readouterr()
        assert main(["search", gallery, query, "--json", *words]) == 0
        return json.loads(capsys.readouterr().out)["matches"][0]

    assert best()["identity"] == "bert"
    assert best()["score"] == pytest.approx(1.0, abs=1e-4)
    assert best("--no-photos")["score"] < 0.999
    assert main(["add", gallery, query, "--name", "carl"]) == 0
    assert [one["score"] for one in _all(gallery, query, capsys)[:2]] == pytest.approx([1.0, 1.0], abs=1e-4)
    assert main(["info", gallery]) == 0
    assert f"are photos, whose faces are found by {detector}" in capsys.readouterr().out
    detector.unlink()
    assert main(["search", gallery, query]) == 1
    assert f"no such detector: {detector}" in capsys.readouterr().err


def _all(gallery: str, query: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["search", gallery, query, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["matches"]


def test_a_move_takes_the_small_image_of_a_photo_for_the_face_that_it_is(
    export_folder: Path, photographed: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, detector = photographed
    gallery, following = str(tmp_path / "gallery"), tmp_path / "next"
    words = ["--model", str(export_folder), "--photos", "--detector", str(detector)]
    assert main(["build", gallery, str(folder), *words]) == 0
    shutil.copytree(export_folder, following)
    about = json.loads((following / "model.json").read_text())
    (following / "model.json").write_text(json.dumps(about | {"weights": "b" * 64}))
    assert main(["reembed", gallery, "--model", str(following), "--from-previews"]) == 0
    with Gallery.open(gallery) as opened:
        recogniser = Recogniser.load(following, photos=True, detector=detector)
        for name in ("anna", "bert"):
            assert opened.search(recogniser.embed(folder / name / "1.png")[0], k=1)[0].identity == name


def _names(gallery: Path) -> list[str]:
    with Gallery.open(gallery) as opened:
        return [one.name for one in opened.store.identities()]


def test_names_that_cannot_be_kept_are_listed_and_left_out(
    export_folder: Path, odd: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gallery = tmp_path / "gallery"
    assert main(["build", str(gallery), str(odd), "--model", str(export_folder)]) == 0
    said = capfd.readouterr()
    assert sum(line.startswith("left out: ") and "must be" in line for line in said.err.splitlines()) == 4
    assert "2 pictures enrolled, 4 could not be read" in said.out
    assert _names(gallery) == ["last", "ok"]

    for name in ("ok", "last"):
        shutil.rmtree(odd / name)
    assert main(["build", str(tmp_path / "other"), str(odd), "--model", str(export_folder)]) == 1
    assert "no gallery was made" in capfd.readouterr().err
    assert not (tmp_path / "other").exists()


def test_links_that_lead_out_of_the_folder_are_left_out(
    export_folder: Path, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, gallery = tmp_path / "people", tmp_path / "gallery"
    shutil.copytree(pictures / "id01", folder / "anna")
    (folder / "eve").mkdir()
    (folder / "eve" / "1.png").symlink_to(pictures / "id02" / "p0.png")
    assert main(["build", str(gallery), str(folder), "--model", str(export_folder)]) == 0
    assert f"left out: {folder / 'eve' / '1.png'}" in capfd.readouterr().err
    assert _names(gallery) == ["anna"]
    assert main(["add", str(gallery), str(folder), "--allow", str(pictures)]) == 0
    assert _names(gallery) == ["anna", "eve"]
    shutil.rmtree(folder / "anna")
    assert main(["build", str(tmp_path / "other"), str(folder), "--model", str(export_folder)]) == 1
    assert "no gallery was made" in capfd.readouterr().err


def test_a_build_that_the_disk_ends_says_how_to_go_on(
    export_folder: Path, pictures: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: SqliteStore, pictures: Any) -> int:
        raise GalleryFullError("the disk is full; nothing was changed.")

    gallery = tmp_path / "gallery"
    with monkeypatch.context() as patched:
        patched.setattr(SqliteStore, "extend", full)
        assert main(["build", str(gallery), str(pictures), "--model", str(export_folder)]) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert f"go on with `pfc-gallery add {gallery} {pictures}`" in said
    assert main(["add", str(gallery), str(pictures)]) == 0
    assert len(_names(gallery)) == 60


@pytest.mark.parametrize("command", ["export", "build"])
def test_a_disk_without_room_is_that_of_the_new_folder_which_is_gone(
    export_folder: Path, pictures: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    gallery, new = str(tmp_path / "gallery"), tmp_path / "new"
    assert main(["build", gallery, str(pictures), "--model", str(export_folder)]) == 0
    words = {"export": [gallery, str(new)], "build": [str(new), str(pictures), "--model", str(export_folder)]}[command]
    capsys.readouterr()
    with no_file_over(10_000):
        assert main([command, *words]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"pfc-gallery: {new}")
    assert len(said.splitlines()) == 1
    assert not new.exists()
    assert main([command, *words]) == 0


def test_a_picture_that_lies_there_twice_is_counted_once(
    export_folder: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(pictures / "id01", tmp_path / "people" / "anna")
    shutil.copy(pictures / "id01" / "p0.png", tmp_path / "people" / "anna" / "again.png")
    words = [str(tmp_path / "gallery"), str(tmp_path / "people")]
    assert main(["build", *words, "--model", str(export_folder)]) == 0
    said = "4 pictures enrolled, 1 were there already; the gallery has 4 of 1 identities"
    assert said in capsys.readouterr().out


def test_a_move_is_given_up(
    export_folder: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gallery = str(tmp_path / "gallery")
    assert main(["build", gallery, str(pictures), "--model", str(export_folder)]) == 0
    with Gallery.open(gallery) as opened:
        opened.store.begin_next(ModelRecord("b" * 64, 8, "/gone"))
    capsys.readouterr()
    for words in ([], ["--abort", "--model", str(export_folder)]):
        assert main(["reembed", gallery, *words]) == 1
        assert "reembed takes --model EXPORT, or --abort" in capsys.readouterr().err
    assert main(["reembed", gallery, "--abort"]) == 0
    assert main(["reembed", gallery, "--abort"]) == 1
    assert "is not on its way to another model" in capsys.readouterr().err


def test_a_move_takes_the_pictures_that_were_enrolled_and_no_others(
    export_folder: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that was replaced, or has the end of the path only, would be another picture under the old name."""
    people, gallery, following = tmp_path / "people", str(tmp_path / "gallery"), tmp_path / "next"
    for number, name in enumerate(("anna", "bert")):
        shutil.copytree(pictures / f"id{number:02d}", people / name)
    assert main(["build", gallery, str(people), "--model", str(export_folder)]) == 0
    shutil.copytree(export_folder, following)
    about = json.loads((following / "model.json").read_text())
    (following / "model.json").write_text(json.dumps(about | {"weights": "b" * 64}))
    stranger = (pictures / "id05" / "p0.png").read_bytes()
    (people / "anna" / "p0.png").write_bytes(stranger)
    (people / "bert" / "p2.png").rename(tmp_path / "away.png")
    (people / "p2.png").write_bytes(stranger)
    words = ["reembed", gallery, "--model", str(following), "--folder", str(people)]
    capsys.readouterr()
    assert main(words) == 1
    said = capsys.readouterr().err
    for line in ("of anna: ", "of bert: "):
        assert line in said
    assert said.count("has other bytes than the picture that was enrolled; --other-bytes takes it") == 2
    assert "2 pictures could not be read again" in said
    (tmp_path / "away.png").rename(people / "bert" / "p2.png")  # found again, the stranger beside it or not
    assert main([*words, "--from-previews"]) == 0
    with Gallery.open(gallery) as opened:
        recogniser = Recogniser.load(following)
        # anna's is of her small image, and near the picture that was enrolled
        for name, file in (("anna", pictures / "id00" / "p0.png"), ("bert", people / "bert" / "p2.png")):
            assert opened.search(recogniser.embed(file)[0], 1)[0].identity == name
        assert opened.search(recogniser.embed(file)[0], 1)[0].score > 1 - 1e-5
    assert main(["reembed", gallery, "--model", str(export_folder), "--folder", str(people), "--other-bytes"]) == 0
    with Gallery.open(gallery) as opened:
        assert opened.search(Recogniser.load(export_folder).embed(stranger)[0], 1)[0].score > 1 - 1e-5


@pytest.mark.parametrize("command", [["info"], ["build", "people", "--model", "export"]])
def test_an_address_that_is_empty(
    export_folder: Path, pictures: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [{"people": str(pictures), "export": str(export_folder)}.get(word, word) for word in command[1:]]
    assert main([command[0], "", *words]) == 1
    assert "is empty; give a folder" in capsys.readouterr().err
