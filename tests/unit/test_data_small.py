"""Small sets, hidden entries, lists of others, and messages that say what to do."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_pfc.config import compose, explain
from lightning_pfc.data import Files, IdentityDataModule
from lightning_pfc.data.curation.alignment import TEMPLATE, align_files
from lightning_pfc.data.curation.check import check, suspects
from lightning_pfc.data.curation.check_report import describe, summary
from lightning_pfc.data.formats import (
    FolderImages,
    FormatError,
    ListImages,
    ParquetImages,
    WebDatasetImages,
    open_images,
)
from lightning_pfc.data.formats.readers import guess_format
from lightning_pfc.data.verification import make_pairs
from lightning_pfc.deploy.picture_folders import open_pictures
from lightning_pfc.evaluation import EvaluationSettings, Evaluator, TorchEmbedder
from lightning_pfc.metrics.verification import verification_metrics
from tests.unit.test_data_safety import jpeg, make_ijb, make_parquet, make_tar

pytest.importorskip("cv2")  # here, since it changes the environment


def folder_of(root: Path, classes: int, per_class: int = 3) -> Path:
    for number in range(classes):
        (root / f"{number:03d}").mkdir(parents=True)
        for image in range(per_class):
            (root / f"{number:03d}" / f"{image}.jpg").write_bytes(jpeg(number * per_class + image))
    return root


# --- small sets ------------------------------------------------------------------------------------------------------


def test_identities_with_one_picture_are_not_all_that_is_set_aside(tmp_path: Path) -> None:
    """Of 200 identities 5 have two pictures: a draw of ten finds no two of those, so they come first."""
    names = [f"{n:03d}/{k}.jpg\t{n:03d}" for n in range(200) for k in range(2 if n % 40 == 0 else 1)]
    (tmp_path / "list.tsv").write_text("\n".join(names))
    (tmp_path / "000").mkdir()
    (tmp_path / "000" / "0.jpg").write_bytes(jpeg())
    data = Files(path=tmp_path / "list.tsv", image_size=16, test_share=0.05, impostors=50).open()
    assert (data.num_classes, int(data.test["test"].pairs.same.sum())) == (190, 5)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("classes", "aside", "folds"), [(6, 4, 2), (40, 4, 2), (100, 5, 2), (200, 10, 5), (399, 20, 10)]
)
def test_the_share_that_is_there_by_default_works_on_small_sets(
    tmp_path: Path, classes: int, aside: int, folds: int, caplog: pytest.LogCaptureFixture
) -> None:
    """At d9503b9 ``data=folder`` failed below 390 identities as it comes."""
    share = float(compose(["data=folder", "data.source.path=x"]).data.source.test_share)
    names = [f"{number % classes:03d}/{number}.jpg\t{number % classes:03d}" for number in range(3 * classes)]
    (tmp_path / "list.tsv").write_text("\n".join(names))
    (tmp_path / "000").mkdir()
    (tmp_path / "000" / "0.jpg").write_bytes(jpeg())
    with caplog.at_level("INFO"):
        data = Files(path=tmp_path / "list.tsv", image_size=16, test_share=share, impostors=50).open()
    assert data.num_classes == classes - aside
    found: Any = data.test["test"]
    assert len(set(found.identity.tolist())) == aside
    assert found.pairs.fold.max() == folds - 1
    assert (f"sets {aside} aside: verification in {folds} folds" in caplog.text) is (folds < 10)
    for fold in range(folds):
        same = found.pairs.same[found.pairs.fold == fold]
        assert 0 < int(same.sum()) <= len(same)
    metrics = verification_metrics(found.pairs)
    metrics.update(torch.nn.functional.one_hot(found.identity) + 0.1, torch.arange(len(found.identity)))
    assert {name: float(value) for name, value in metrics.compute().items()} == {
        "accuracy": 1.0, "auc": 1.0, "tar@far=1e-2": 1.0, "tar@far=1e-3": 1.0,
    }  # fmt: skip


def test_what_is_too_small_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"test_share=0\.05 of 5 identities set 4 aside.*leave 1 to train on"):
        Files(path=folder_of(tmp_path / "a", 5), image_size=16, test_share=0.05).open()
    identity = np.repeat(np.arange(3), 2)
    with pytest.raises(ValueError, match="3 identities: verification needs at least 4"):
        make_pairs(identity, np.arange(6), seed=0, impostors=5)
    lonely = np.array([0, 0, 1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match="only one identity has pictures in two groups"):
        make_pairs(lonely, np.arange(7), seed=0, impostors=5)


def test_every_fold_has_a_genuine_pair_where_few_identities_have_one() -> None:
    identity = np.concatenate([np.arange(40), np.arange(12)])  # twelve of forty have two pictures
    for seed in range(20):
        pairs = make_pairs(identity, np.arange(len(identity)), seed=seed, impostors=20)
        assert set(pairs.fold[pairs.same].tolist()) == set(range(10))
    few = make_pairs(np.concatenate([np.arange(40), np.arange(3)]), np.arange(43), seed=0, impostors=20)
    assert set(few.fold[few.same].tolist()) == {0, 1, 2}


# --- hidden entries --------------------------------------------------------------------------------------------------


def test_hidden_entries_are_no_classes_and_no_images(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "faces", 3)
    others = (
        "@Recycle",
        "@Recently-Snapshot",
        "@sharebin",
        "@tmp",
        "~snapshot",
        "_gsdata_",
        "__pycache__",
        "found.000",
        "FOUND.012",
        "RECYCLER",
        "Network Trash Folder",
    )
    for name in (
        *(f"{folder}/0.jpg" for folder in others),
        "000/~$0.jpg",
        ".ipynb_checkpoints/0.jpg",
        "__MACOSX/0.jpg",
        "@eaDir/0.jpg",
        "000/._0.jpg",
        "001/@eaDir/1.jpg",
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"no picture")
    for name in ("Thumbs.db", ".DS_Store", "desktop.ini"):
        (root / "000" / name).write_bytes(b"x")
    images = FolderImages(root)
    assert images.identities.tolist() == ["000", "001", "002"]
    assert len(images) == 9
    source = Files(path=root, image_size=16)
    source.prepare()
    assert IdentityDataModule(source, batch_size=3).source is source
    assert check(images, progress=False).is_clean
    (root / "._0.jpg").write_bytes(b"no picture")  # directly in it, where it would hide that there are identities
    assert isinstance(open_pictures(root), FolderImages)
    (tmp_path / "plain" / "data").mkdir(parents=True)
    (tmp_path / "plain" / "data" / "._0.parquet").write_bytes(b"no table")
    assert guess_format(tmp_path / "plain") == "folder"
    tables = tmp_path / "tables"
    make_parquet(tables / "a.parquet", [{"bytes": jpeg(), "path": None}])
    for name in ("._a.parquet", ".ipynb_checkpoints/a.parquet"):
        (tables / name).parent.mkdir(exist_ok=True)
        (tables / name).write_bytes(b"no table")
    assert len(ParquetImages(tables)) == len(open_images(tables)) == 1
    shards = tmp_path / "shards"
    shards.mkdir()
    members = {"1.jpg": jpeg(), "1.cls": b"0", "._1.jpg": b"x", "__MACOSX/2.jpg": b"x", "@eaDir/3.jpg": b"x"}
    make_tar(shards / "0.tar", members)
    (shards / "._0.tar").write_bytes(b"no tar")
    assert len(WebDatasetImages(shards)) == len(open_images(shards)) == 1
    npy = tmp_path / "npy"
    for name in ("ann/1.npy", "ann/._1.npy", ".hidden/1.npy"):
        (npy / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(npy / name, np.ones(3, np.float32)) if name == "ann/1.npy" else (npy / name).write_bytes(b"x")
    evaluator = Evaluator(None, EvaluationSettings(replicates=0))
    assert len(evaluator._open("x", str(npy))[1]) == 1


# --- lists of others -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "text", "paths", "labels"),
    [
        (".lst", "1\ta/1.jpg\t7\n1\tb/2.jpg\t8\n", ["a/1.jpg", "b/2.jpg"], [7, 8]),  # InsightFace
        (".lst", "1\ta/1.jpg\t7\t10\t20\t30.5\t40\n1\tb/2.jpg\t8\n", ["a/1.jpg", "b/2.jpg"], [7, 8]),
        (".lst", "0\t7.0\ta/1.jpg\n1\t8.0\t0.5\tb/2.jpg\n", ["a/1.jpg", "b/2.jpg"], [7, 8]),  # im2rec
        (".lst", "0\t7.0\ta/1\n1\t8.0\tb/2\n", ["a/1", "b/2"], [7, 8]),
        (".lst", "0\tann\ta/1.jpg\n", ["a/1.jpg"], ["ann"]),
        (".lst", "1\ta/1.jpg\tann\n", ["a/1.jpg"], ["ann"]),
        (".tsv", "ann\ta/1.jpg\n7\tb.png\n", ["a/1.jpg", "b.png"], ["ann", "7"]),
        (".txt", "7 a/1.jpg\n", ["a/1.jpg"], [7]),
        (".csv", "a/1,7\n", ["a/1"], [7]),
        (".csv", "a,b\n", ["a"], ["b"]),
    ],
)
def test_columns_are_known_by_what_they_hold(
    tmp_path: Path, suffix: str, text: str, paths: list[str], labels: list[Any]
) -> None:
    (tmp_path / f"x{suffix}").write_text(text)
    images = ListImages(tmp_path / f"x{suffix}")
    assert [images.locate(n).split(" (")[0] for n in range(len(images))] == [str(tmp_path / path) for path in paths]
    assert images.identities[images.labels].tolist() == labels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\t2\t3\n", r"cannot tell which field is the path: '3' \(then '2' is the label.*or '2' \(then '3' is"),
        ("1\ta\tb\n", r"cannot tell which field is the path: 'b'.*or 'a'"),
        (
            "1\ta.jpg\t0\n2\t0\ta.jpg\n",
            "byte 10: the last field is the path in this line, but field 2 in the lines before",
        ),
        ("1\ta.jpg\n", "expected `index<tab>label<tab>path` or `1<tab>path<tab>label`, found 2 fields"),
    ],
)
def test_a_list_that_does_not_tell_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.lst").write_text(text)
    with pytest.raises(FormatError, match=message):
        ListImages(tmp_path / "x.lst")


# --- pfc-data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "photo,who\na/1.jpg,7\n", "the first line, \\['photo', 'who'\\], does not.*columns=\\[photo,who\\]"),
        ("a.txt", "image_id species\na/1.jpg fox\n", "the first line, .* does not"),
        ("a.txt", "a/1.jpg 7 10 20 30\nb/2.jpg 8 1 2 3\n", "found 5 fields.*with tabs between fields"),
        ("a.csv", "0,a/1.jpg,7\n", "found 3 fields.*such as `path,label`"),
        ("a.tsv", "0\t7\ta/1.jpg\n", "found 3 fields.*such as `path<tab>label`"),
        ("a.csv", "a/1.jpg;7\n", "separated by commas"),
        ("a.lst", "1 a/1.jpg 7\n", "separated by tabs"),
    ],
)
def test_a_list_of_other_columns_says_what_to_write(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(FormatError, match=message):
        ListImages(tmp_path / name)


def test_a_label_before_a_path_with_spaces(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("7 my faces/1.jpg\n8 b/2.jpg\n9 c d/3.jpg\n")
    images = ListImages(tmp_path / "a.txt")
    assert [images.name(i) for i in range(3)] == ["my faces/1", "b/2", "c d/3"]
    assert images.identities[images.labels].tolist() == [7, 8, 9]


def test_check_counts_turned_and_constant_pictures_and_names_the_equal_ones(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "faces", 3, 2)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.arange(300, dtype=np.uint16).reshape(10, 10, 3).astype(np.uint8)).save(
        root / "000" / "turned.jpg", exif=exif
    )
    for name, value in (("001/white.png", 65535), ("001/grey.png", 300)):
        Image.fromarray(np.full((5, 5), value, np.uint16)).save(root / name)
    (root / "002" / "copy.jpg").write_bytes((root / "001" / "0.jpg").read_bytes())
    report = check(FolderImages(root), progress=False)
    assert dict(report.orientations) == {6: 1}
    assert [report.locate(place) for place in report.constant] == [
        str(root / name) for name in ("001/grey.png", "001/white.png")
    ]
    text = describe(report)
    assert "turned           1 by their EXIF tag (6: 1)" in text
    assert "constant         2 pictures have the same value everywhere" in text
    assert "transparent" not in text
    assert f"{root / '001' / '0.jpg'} = {root / '002' / 'copy.jpg'}" in text
    assert summary(report)["duplicate_places"] == [[str(root / "001" / "0.jpg"), str(root / "002" / "copy.jpg")]]
    assert json.dumps(summary(report))
    (root / "001" / "again.jpg").write_bytes((root / "001" / "1.jpg").read_bytes())
    found = dict(suspects(check(FolderImages(root), progress=False)))
    assert f"equal to image 4, {root / '001' / '1.jpg'}" in found.values()


def test_check_counts_transparent_pictures_and_says_what_to_do(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "logos", 2, 2)
    drawn = np.random.default_rng(0).integers(0, 256, (5, 5), np.uint8)
    Image.fromarray(np.dstack([np.zeros((5, 5, 3), np.uint8), drawn])).save(root / "000" / "logo.png")
    report = check(FolderImages(root), progress=False)
    assert (report.transparent, summary(report)["transparent"], len(report.constant)) == (1, 1, 1)
    assert "transparent      1 pictures are so somewhere" in describe(report)
    assert "data.source.background=white" in describe(report)


def test_landmarks_are_those_of_the_upright_picture(tmp_path: Path) -> None:
    """OpenCV turns a picture by its tag, so landmarks found there are of the turned one. Large photos shrink."""
    upright = np.zeros((300, 200, 3), np.uint8)
    points = TEMPLATE + np.array([40, 90])
    for number, (x, y) in enumerate(points.round().astype(int)):
        upright[y - 4 : y + 5, x - 4 : x + 5] = 60 + 40 * number
    sideways = np.rot90(upright, 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    line = "\t".join(f"{value:.2f}" for value in points.reshape(-1))
    for name in ("plain.png", "turned.png", "turned.jpg"):
        Image.fromarray(sideways if "turned" in name else upright).save(
            tmp_path / name, **({"exif": exif} if "turned" in name else {}), quality=95
        )
    Image.fromarray(upright).resize((1600, 2400)).save(tmp_path / "large.jpg")
    eight = "\t".join(f"{value * 8:.2f}" for value in points.reshape(-1))
    table = "".join(f"{name}\t{line}\n" for name in ("plain.png", "turned.png", "turned.jpg"))
    (tmp_path / "points.tsv").write_text(table + f"large.jpg\t{eight}\n")
    done, failures = align_files(
        tmp_path / "points.tsv", tmp_path, tmp_path / "out", max_pixels=100_000, progress=False
    )
    assert (done, failures) == (4, [])
    wanted = upright[90 : 90 + 112, 40 : 40 + 112].astype(int)
    for name, tolerance in (("plain.png", 0.01), ("turned.png", 0.01), ("turned.jpg", 4), ("large.jpg", 8)):
        aligned = np.asarray(Image.open(tmp_path / "out" / name)).astype(int)
        assert np.abs(aligned - wanted).mean() < tolerance, name


def test_a_photo_of_two_faces_is_not_half_aligned(tmp_path: Path) -> None:
    line = "\t".join(map(str, range(10)))
    (tmp_path / "points.tsv").write_text(f"a.jpg\t{line}\nb.jpg\t{line}\n./a.jpg\t{line}\n")
    with pytest.raises(FormatError, match=r"\./a\.jpg is listed twice; of a photo with two faces"):
        align_files(tmp_path / "points.tsv", tmp_path, tmp_path / "out", progress=False)


# --- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [("S1", "S2"), ("G1", "G2"), ("S1",), ()])
def test_the_galleries_of_ijb_b_and_c(tmp_path: Path, parts: tuple[str, ...]) -> None:
    root = make_ijb(tmp_path / "ijb")
    for part in ("S1", "S2"):
        path = root / "meta" / f"ijbb_1N_gallery_{part}.csv"
        if parts and parts[0][0] == "G":
            path.rename(root / "meta" / f"ijbb_1N_gallery_G{part[1]}.csv")
        elif part not in parts:
            path.unlink()
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 4))
    evaluator = Evaluator(
        TorchEmbedder(network, (3, 16, 16)), EvaluationSettings(replicates=0, fars=(), ranks=(1,), fpirs=())
    )
    result = evaluator.run("x", {"type": "ijb", "root": str(root), "subset": "ijbb"})
    assert ("1:N[F1-Nkeep-D1]/rank-1" in {m.name for m in result.measurements}) is bool(parts)
    if parts:
        assert f"2 probes against {len(parts)} galleries" in result.description
    else:
        assert "1:N left out (meta/ has none of ijbb_1N_gallery_G1.csv, ijbb_1N_gallery_G2.csv, ijbb_1N_gallery_S1" in (
            result.description
        )


# --- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/a=b", "/faces (1)/x", "/a[1]{2}", "a,b", '/it\'s "so"\\', "ü#1"])
def test_a_path_that_hydra_cannot_read_is_shown_in_quotes(path: str) -> None:
    import shlex

    with pytest.raises(ValueError, match="write its value in quotes") as caught:
        compose(["data=folder", f"data.source.path={path}"])
    assert len(str(caught.value).splitlines()) == 1
    (word,) = shlex.split(str(caught.value).rsplit("on the command line: ", 1)[1])
    assert compose(["data=folder", word]).data.source.path == path


def test_a_key_of_another_source_is_told_where_it_is() -> None:
    with pytest.raises(
        ValueError, match=r"data\.source has no key path with data=glyphs; it has one with data=folder, "
    ):
        compose(["data.source.path=faces/"])
    with pytest.raises(ValueError, match=r"no key preset with data=folder; .*data=glyphs data\.source\.preset=VALUE"):
        compose(["data=folder", "data.source.preset=large"])
    with pytest.raises(ValueError, match=r"no key siize\. Did you mean image_size\? There are: .*max_pixels"):
        compose(["data=folder", "data.source.siize=3"])
    assert explain(ValueError("plain")) == "plain"


def test_a_path_that_became_a_number_says_what_to_write() -> None:
    for value in (7, 1.5, [1]):
        with pytest.raises(ValueError, match=r"path must be a path.*needs quotes"):
            Files(path=value)  # type: ignore[arg-type]
    assert io.BytesIO(b"").read() == b""
