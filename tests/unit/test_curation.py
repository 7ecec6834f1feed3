"""pfc-data: conversion between all formats, interruption and resumption, checks, alignment, cleaning."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lightning_pfc.commands.data import main
from lightning_pfc.data.curation.alignment import TEMPLATE, align, read_landmarks, similarity_transform
from lightning_pfc.data.curation.check import check, suspects
from lightning_pfc.data.curation.check_report import histogram
from lightning_pfc.data.curation.clean import find
from lightning_pfc.data.curation.convert import convert
from lightning_pfc.data.format_names import WRITABLE
from lightning_pfc.data.formats import EncodedImages, FolderImages, FormatError, RecordIOImages, open_images
from tests.golden_formats import GOLDEN, golden

with contextlib.suppress(ImportError):
    import cv2  # noqa: F401 (here, because it changes the environment when it is first imported)

NAMES = ["ann", "bob/2", "cai", "über"]
ODD = ["a  b", "a b", "c\u2028d\x0c\x85e", "f"]  # only line feeds end a line, and two spaces are not one


class InMemory(EncodedImages):
    """Encoded images from a list."""

    def __init__(self, images: list[bytes], labels: Any, identities: Any) -> None:
        self.images, self.source = images, "memory"
        self.labels, self.identities = np.asarray(labels, np.int64), np.asarray(identities)

    def read(self, index: int) -> bytes:
        return self.images[self._check_index(index)]

    def locate(self, index: int) -> str:
        return f"memory, image {index}"


def mixed(identities: Any = None) -> InMemory:
    """The golden images, classes not in order."""
    images, labels, _ = golden()
    order = np.random.default_rng(0).permutation(len(images))
    return InMemory([images[i] for i in order], labels[order], np.arange(4) if identities is None else identities)


def content(images: EncodedImages) -> list[tuple[str, bytes]]:
    return sorted((str(images.identities[images.labels[i]]), images.read(i)) for i in range(len(images)))


def needs(format: str) -> None:
    if format in ("parquet", "huggingface"):
        pytest.importorskip("pyarrow")
    if format == "webdataset":
        pytest.importorskip("webdataset")


@pytest.mark.parametrize("format", WRITABLE)
@pytest.mark.parametrize("identities", [None, NAMES, ODD, [5, 70, 300, 4000]])
def test_every_format_keeps_bytes_and_identities(format: str, identities: Any, tmp_path: Path) -> None:
    needs(format)
    source = mixed(identities)
    convert(source, tmp_path / "out", format, shard_size=5, progress=False)
    back = open_images(tmp_path / "out" / "list.tsv" if format == "list" else tmp_path / "out")
    wanted = content(source)
    if format == "folder" and identities is not None:
        safe = {"bob/2": "bob%2F2", ODD[2]: ODD[2].replace("\x0c", "%0C"), "5": "0005", "70": "0070", "300": "0300"}
        wanted = sorted((safe.get(name, name), data) for name, data in wanted)
    assert content(back) == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("format", ["recordio", "list"])
def test_names_that_a_line_cannot_hold_are_written_otherwise(format: str, tmp_path: Path) -> None:
    convert(mixed(["a\nb", "a b", "c\r", "d"]), tmp_path / "out", format, progress=False)
    back = open_images(tmp_path / "out" / "list.tsv" if format == "list" else tmp_path / "out")
    assert sorted(back.identities.tolist()) == ["a b", "a%0Ab", "c%0D", "d"]


def test_spaces_at_the_ends_of_a_name_are_kept_apart_in_a_list(tmp_path: Path) -> None:
    convert(mixed(["a", "a ", "\u3000a", "\t"]), tmp_path / "out", "list", progress=False)
    assert sorted(open_images(tmp_path / "out" / "list.tsv").identities.tolist()) == ["%09", "%3000a", "a", "a%20"]


@pytest.mark.parametrize(
    ("names", "said"), [(["a\nb", "a%0Ab"], "the name of another"), (["a\udcff", "b"], "no UTF-8")]
)
@pytest.mark.parametrize("format", ["recordio", "list"])
def test_names_that_would_be_one_are_refused_before_anything_is_written(
    names: list[str], said: str, format: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        convert(mixed([*names, "y", "z"]), tmp_path / "out", format, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", ["headered", "flat"])
def test_record_files_round_trip_byte_for_byte(layout: str, tmp_path: Path) -> None:
    images, labels, _ = golden()
    convert(InMemory(images, labels, np.arange(4)), tmp_path / "a.rec", "recordio", layout=layout, progress=False)
    for ending in ("rec", "idx"):
        assert (tmp_path / f"a.{ending}").read_bytes() == (GOLDEN / f"mxnet_{layout}.{ending}").read_bytes()


class Stopped(RuntimeError):
    pass


class Interrupted(InMemory):
    """Stops after a number of reads, as a killed process would."""

    left = 10**9

    def read(self, index: int) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise Stopped
        return super().read(index)


@pytest.mark.parametrize("format", WRITABLE)
@pytest.mark.parametrize("after", [0, 1, 5, 7, 11])
def test_an_interrupted_conversion_goes_on(format: str, after: int, tmp_path: Path) -> None:
    needs(format)
    plain = mixed(NAMES)
    convert(plain, tmp_path / "whole", format, shard_size=3, progress=False)
    source = Interrupted(plain.images, plain.labels, plain.identities)
    source.left = after
    with pytest.raises(Stopped):
        convert(source, tmp_path / "out", format, shard_size=3, progress=False)
    assert not (tmp_path / "out").exists()
    source.left = 13
    convert(source, tmp_path / "out", format, shard_size=3, progress=False)
    if after >= 3:
        assert source.left > 1, "it began anew"

    def files(root: Path) -> dict[str, bytes]:
        return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_another_conversion_does_not_take_over(tmp_path: Path) -> None:
    plain = mixed()
    source = Interrupted(plain.images, plain.labels, plain.identities)
    source.left = 4
    with pytest.raises(Stopped):
        convert(source, tmp_path / "out", "folder", progress=False)
    with pytest.raises(FileExistsError, match="left by another conversion"):
        convert(mixed(NAMES), tmp_path / "out", "folder", progress=False)
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        convert(plain, tmp_path / "there", "folder", progress=False)


def test_other_files_of_as_many_do_not_take_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more and one less of an identity: what was written is a picture that is gone, and another is left out."""
    data, out = tmp_path / "data", tmp_path / "out"
    convert(mixed(NAMES), data, "folder", progress=False)
    read = FolderImages.read

    def stops(self: FolderImages, index: int) -> bytes:
        if index == 2:
            raise Stopped
        return read(self, index)

    with monkeypatch.context() as patched:
        patched.setattr(FolderImages, "read", stops)
        with pytest.raises(Stopped):
            convert(FolderImages(data), out, "list", progress=False)
    first = sorted(path for path in data.rglob("*") if path.is_file())[0]
    first.rename(first.with_name(f"zz{first.suffix}"))
    with pytest.raises(FileExistsError, match="left by another conversion"):
        convert(FolderImages(data), out, "list", progress=False)
    first.with_name(f"zz{first.suffix}").rename(first)
    convert(FolderImages(data), out, "list", progress=False)


def test_shuffled_flat_records(tmp_path: Path) -> None:
    source = mixed()
    convert(source, tmp_path / "a.rec", "recordio", layout="flat", shuffle=1, progress=False)
    back = RecordIOImages(tmp_path / "a.rec")
    assert content(back) == content(source)
    assert [back.read(i) for i in range(12)] != source.images
    with pytest.raises(ValueError, match="layout='flat'"):
        convert(source, tmp_path / "b.rec", "recordio", shuffle=1)
    for arguments, message in (
        ({"format": "tfrecord"}, "format is 'tfrecord'"),
        ({"format": "recordio", "layout": "x"}, "layout is 'x'"),
        ({"format": "folder", "shard_size": 0}, "shard_size is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(source, tmp_path / "c", **arguments)


def test_images_of_equal_names_are_all_kept(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    for number, name in enumerate(["x/1.png", "y/1.png", "y/1.PNG"]):
        (tmp_path / name).write_bytes(golden()[0][2 * number])
    (tmp_path / "a.tsv").write_text("x/1.png\tann\ny/1.png\tann\ny/1.PNG\tann\n")
    convert(open_images(tmp_path / "a.tsv"), tmp_path / "out", "folder", progress=False)
    assert content(FolderImages(tmp_path / "out")) == content(open_images(tmp_path / "a.tsv"))


def picture(seed: int, size: tuple[int, int] = (16, 16), kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def repacked(data: bytes) -> bytes:
    """The same pixels in other bytes."""
    out = io.BytesIO()
    Image.open(io.BytesIO(data)).save(out, "PNG", compress_level=0)
    assert out.getvalue() != data
    return out.getvalue()


def test_check_finds_what_is_wrong() -> None:
    images = [picture(0), picture(1), repacked(picture(0)), b"broken", picture(2), picture(1), picture(3, (8, 16))]
    data = InMemory(images, [0, 0, 0, 1, 1, 1, 2], ["a", "b", "c"])
    other = InMemory([picture(9), repacked(picture(2))], [0, 1], ["c", "x"])
    report = check(data, against=other, workers=2, progress=False)
    assert [(place, "memory, image 3" in reason) for place, _, reason in report.broken] == [(3, True)]
    assert report.duplicates == [[0, 2], [1, 5]]
    assert report.conflicts == [[1, 5]]
    assert report.overlap == [(4, 1)]
    assert report.shared_identities == ["c"]
    assert dict(report.sizes) == {(16, 16): 5, (8, 16): 1}
    assert report.per_class.tolist() == [3, 3, 1]
    assert [place for place, _ in suspects(report)] == [1, 2, 3, 4, 5]
    assert not report.is_clean
    assert check(InMemory(images[:2], [0, 1], [0, 1]), progress=False).is_clean


def test_histogram_counts_every_class() -> None:
    text = histogram(np.array([1, 1, 2, 3, 4, 7, 100]))
    counts = [int(line.split("images:")[1].split()[0]) for line in text.splitlines()]
    assert counts == [2, 2, 2, 0, 0, 0, 1]
    assert text.splitlines()[6].startswith("         64-127 images:         1 classes #")


def test_check_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [picture(0), picture(1), picture(0), b"broken", picture(2)]
    convert(InMemory(images, [0, 0, 0, 1, 1], [0, 1]), tmp_path / "a", "list", progress=False)
    arguments = [
        "--png",
        str(tmp_path / "h.png"),
        "--json",
        str(tmp_path / "r.json"),
        "--list",
        str(tmp_path / "s.tsv"),
    ]
    assert main(["check", str(tmp_path / "a" / "list.tsv"), "--quiet", *arguments]) == 1
    text = capsys.readouterr().out
    assert "images           5" in text
    assert "broken images    1" in text
    assert "000000003.img" in text
    numbers = json.loads((tmp_path / "r.json").read_text())
    assert numbers["images"] == 5
    assert numbers["duplicates"] == [[0, 2]]
    with Image.open(tmp_path / "h.png") as png:
        assert len(png.convert("L").getcolors(1 << 20) or []) > 10  # something is drawn
    assert main(["convert", str(tmp_path / "a" / "list.tsv"), str(tmp_path / "b"), "--to", "folder", "--quiet",
                 "--exclude", str(tmp_path / "s.tsv")]) == 0  # fmt: skip
    assert len(FolderImages(tmp_path / "b")) == 3
    assert main(["check", str(tmp_path / "b"), "--quiet"]) == 0


def test_convert_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["convert", str(GOLDEN / "mxnet_headered.rec"), str(tmp_path / "a.rec"), "--layout", "flat", "--quiet"])
        == 0
    )
    assert "12 images of 4 classes as recordio" in capsys.readouterr().out
    assert (tmp_path / "a.rec").read_bytes() == (GOLDEN / "mxnet_flat.rec").read_bytes()
    assert main(["convert", str(GOLDEN / "mxnet_headered.rec"), str(tmp_path / "x")]) == 2
    assert "tells no format; say it (--to), one of recordio, folder" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "none.rec"), str(tmp_path / "x.rec")]) == 2
    assert "no such file" in capsys.readouterr().err
    (tmp_path / "a.idx").unlink()
    assert main(["index", str(tmp_path / "a.rec")]) == 0
    assert (tmp_path / "a.idx").read_bytes() == (GOLDEN / "mxnet_flat.idx").read_bytes()


def test_make_bin(tmp_path: Path) -> None:
    images = {"a/a_0001.png": picture(0), "a/a_0002.png": picture(1), "b/b_0001.png": picture(2)}
    for name, data in images.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "pairs.txt").write_text("a/a_0001.png a/a_0002.png 1\na/a_0001.png b/b_0001.png 0\n")
    assert main(["make-bin", str(tmp_path / "pairs.txt"), str(tmp_path), str(tmp_path / "t.bin")]) == 0
    bins, same = pickle.loads((tmp_path / "t.bin").read_bytes())
    a, b, c = images.values()
    assert bins == [a, b, a, c]
    assert same == [True, False]


def test_similarity_transform_recovers_what_was_done() -> None:
    angle, scale, shift = 0.3, 1.7, np.array([5.0, -3.0])
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = TEMPLATE @ turn.T + shift
    np.testing.assert_allclose(similarity_transform(TEMPLATE, moved), np.column_stack([turn, shift]), atol=1e-9)
    noisy = moved + np.random.default_rng(0).normal(size=moved.shape)
    best = similarity_transform(TEMPLATE, noisy)

    def loss(matrix: np.ndarray) -> float:
        return float(((TEMPLATE @ matrix[:, :2].T + matrix[:, 2] - noisy) ** 2).sum())

    for number in range(100):  # no similarity nearby does better
        a, b, x, y = np.random.default_rng(number).normal(scale=0.01, size=4)
        other = best + np.array([[a, -b, x], [b, a, y]])
        assert loss(other) > loss(best)
    mirrored = TEMPLATE * [-1, 1]
    assert np.linalg.det(similarity_transform(TEMPLATE, mirrored)[:, :2]) > 0
    for bad in (np.ones((5, 2)), np.full((5, 2), np.nan)):
        with pytest.raises(ValueError, match="coincide or are not finite"):
            similarity_transform(bad, TEMPLATE)
    with pytest.raises(ValueError, match="shapes"):
        similarity_transform(TEMPLATE[:4], TEMPLATE)


def test_align_puts_the_points_where_the_template_has_them(tmp_path: Path) -> None:
    if find_spec("cv2") is None:
        pytest.skip("needs opencv-python-headless")
    points = TEMPLATE @ (2 * np.array([[0.96, -0.28], [0.28, 0.96]])).T + [80, 30]
    photo = np.zeros((400, 400, 3), np.uint8)
    for x, y in points.round().astype(int):
        photo[y - 3 : y + 4, x - 3 : x + 4] = 255
    face = align(photo, points)
    assert face.shape == (112, 112, 3)
    for x, y in TEMPLATE.round().astype(int):
        assert face[y, x].min() > 200
    assert (face > 128).mean() < 0.02
    for name in ("in put.png", "one point.png"):
        Image.fromarray(photo).save(tmp_path / name)
    row = " ".join(f"{value:.3f}" for value in points.reshape(-1))
    (tmp_path / "points.txt").write_text(f"in put.png {row}\nmissing.png {row}\none point.png {'1 ' * 10}\n")
    arguments = ["align", str(tmp_path / "points.txt"), str(tmp_path), str(tmp_path / "out"), "--quiet"]
    assert main(arguments) == 1
    assert np.abs(np.asarray(Image.open(tmp_path / "out" / "in put.png")).astype(int) - face).max() <= 1
    with pytest.raises(ValueError, match="five points"):
        align(photo, points[:4])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("../x.jpg" + " 1" * 10, "must lie below"),
        ("/x.jpg" + " 1" * 10, "must lie below"),
        ("ok.jpg" + " 1" * 10 + "\nx.jpg" + " 1" * 9, r"byte 27: a coordinate is no number|byte 27: expected"),
        ("ok.jpg" + " 1" * 10 + "\nx.jpg a" + " 1" * 9, "byte 27: a coordinate"),
    ],
)
def test_damaged_landmarks(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "points.txt").write_text(text)
    with pytest.raises(FormatError, match=message):
        read_landmarks(tmp_path / "points.txt")


def test_clean_finds_outliers_and_classes_to_merge(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    center = np.linalg.qr(rng.normal(size=(64, 64)))[0][:6]
    center[5] = center[2] + 0.2 * center[5]  # class 5 is class 2 under another name
    labels = np.repeat(np.arange(6), 20)
    embeddings = center[labels] + 0.05 * rng.normal(size=(120, 64))
    embeddings[[7, 45]] = center[[3, 0]] + 0.05 * rng.normal(size=(2, 64))
    found = find(embeddings * 9, labels, progress=False)
    assert found.outliers.tolist() == [7, 45]
    assert found.nearest_class.tolist() == [3, 0]
    assert found.merge.tolist() == [[2, 5]]
    np.savez(tmp_path / "e.npz", emb=embeddings.astype(np.float16), label=labels * 10)
    assert main(["clean", str(tmp_path / "e.npz"), str(tmp_path / "s.tsv"), "--quiet"]) == 0
    rows = [line.split("\t") for line in (tmp_path / "s.tsv").read_text().splitlines()]
    assert [row[:3] for row in rows[1:]] == [["outlier", "7", "0"], ["outlier", "45", "20"], ["merge", "", "20"]]
    assert [row[4] for row in rows[1:]] == ["30", "0", "50"]
    np.savez(tmp_path / "n.npz", emb=embeddings, label=labels, names=np.array(list("abcdef")))
    assert main(["clean", str(tmp_path / "n.npz"), str(tmp_path / "s.tsv"), "--quiet", "--force"]) == 0
    rows = [line.split("\t") for line in (tmp_path / "s.tsv").read_text().splitlines()]
    assert [(row[2], row[4]) for row in rows[1:]] == [("a", "d"), ("c", "a"), ("c", "f")]


def test_clean_agrees_with_the_slow_way() -> None:
    rng = np.random.default_rng(1)
    embeddings, labels = rng.normal(size=(300, 8)), rng.integers(0, 30, 300)
    labels[:30] = np.arange(30)
    found = find(embeddings, labels, merge_above=0.5, outlier_below=-0.1, progress=False)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)

    def means(keep: np.ndarray) -> np.ndarray:
        c = np.stack([unit[(labels == k) & keep].sum(axis=0) for k in range(30)])
        return c / np.maximum(np.linalg.norm(c, axis=1, keepdims=True), 1e-30)

    first = means(np.ones(300, bool))
    center = means(np.array([unit[i] @ first[labels[i]] >= -0.1 for i in range(300)]))
    merge = {(i, j) for i in range(30) for j in range(i + 1, 30) if center[i] @ center[j] > 0.5}
    assert {tuple(pair) for pair in found.merge.tolist()} == merge
    wanted = [i for i in range(300) if unit[i] @ center[labels[i]] < -0.1 and (labels == labels[i]).sum() > 2]
    assert found.outliers.tolist() == wanted
    assert merge
    assert wanted


def test_clean_checks_its_input() -> None:
    for embeddings, labels, options, message in (
        (np.ones((3, 2)), np.zeros(2, np.int64), {}, "shapes"),
        (np.ones((3, 2)), np.array([0, -1, 0]), {}, "labels hold -1"),
        (np.full((3, 2), np.nan), np.zeros(3, np.int64), {}, "not finite"),
        (np.ones((3, 2)), np.zeros(3, np.int64), {"merge_above": 2.0}, "merge_above is 2"),
    ):
        with pytest.raises(ValueError, match=message):
            find(embeddings, labels, progress=False, **options)


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ([], ["convert"], ["check"], ["make-bin"], ["align"], ["clean"], ["index"]):
        with pytest.raises(SystemExit) as stop:
            main([*command, "--help"])
        assert stop.value.code == 0
        assert len(capsys.readouterr().out) > 300


@pytest.mark.parametrize("command", ["check", "clean", "overlap"])
def test_a_list_that_is_there_stays(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody may have edited it, and the next command goes by it."""
    for name in "ab":
        for k in range(2):
            path = tmp_path / name / f"id{k}" / "0.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(picture(k))
    np.savez(tmp_path / "e.npz", emb=np.eye(4), label=np.array([0, 0, 1, 1]))
    listed = tmp_path / "list.tsv"
    words = {
        "check": ["check", str(tmp_path / "a"), "--list", str(listed), "--quiet"],
        "clean": ["clean", str(tmp_path / "e.npz"), str(listed), "--quiet"],
        "overlap": ["overlap", str(tmp_path / "a"), str(tmp_path / "b"), str(listed), "--quiet"],
    }[command]
    listed.write_text("")  # as `mktemp` makes it
    assert main(words) in (0, 1)
    written = listed.read_text()
    edited = written + "my line\n"
    listed.write_text(edited)
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert main(words) == 2
    assert capsys.readouterr().err.strip().splitlines() == [
        f"pfc-data {command}: {listed} is there already, perhaps edited: give another name, or --force to replace it."
    ]
    assert listed.read_text() == edited
    assert sorted(tmp_path.rglob("*")) == before
    assert main([*words, "--force"]) in (0, 1)
    assert listed.read_text() == written
