"""Lists, folders, parquet, Arrow, WebDataset and Hugging Face: the same images behind one interface."""

from __future__ import annotations

import builtins
import io
import pickle
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_pfc.data.formats import (
    EncodedImages,
    FolderImages,
    FormatError,
    HuggingFaceImages,
    ListImages,
    MissingLibraryError,
    ParquetImages,
    Subset,
    WebDatasetImages,
    open_images,
)
from lightning_pfc.data.formats.base import contiguous_labels
from tests.golden_formats import GOLDEN, golden


def same_as_golden(data: EncodedImages) -> None:
    images, labels, _ = golden()
    assert [data.read(i) for i in range(len(data))] == images
    np.testing.assert_array_equal(data.labels, labels)
    assert data.labels.dtype == np.int64
    assert data.num_classes == len(data.identities) == 4
    copy = pickle.loads(pickle.dumps(data))
    assert copy.read(5) == images[5]
    assert all(data.locate(i) for i in range(len(data)))
    assert len({data.name(i) for i in range(len(data))}) == len(data)
    for index in (-1, len(data)):
        with pytest.raises(IndexError, match=f"index is {index}"):
            data.read(index)


def write_folder(root: Path) -> None:
    images, labels, _ = golden()
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        folder = root / "abcd"[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02d}.{'png' if image[1:4] == b'PNG' else 'JPG'}").write_bytes(image)


def test_folder(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    data = FolderImages(tmp_path)
    same_as_golden(data)
    assert data.identities.tolist() == ["a", "b", "c", "d"]
    assert data.name(3) == "b/03"
    (tmp_path / "a" / "00.png").unlink()
    with pytest.raises(FormatError, match=r"a/00\.png: the image cannot be read"):
        data.read(0)
    with pytest.raises(FormatError, match="ROOT/IDENTITY"):
        FolderImages(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        FolderImages(tmp_path / "none")


def paths_and_labels(root: Path) -> list[tuple[str, int]]:
    data = FolderImages(root)
    return [(data.locate(i).removeprefix(f"{root}/"), int(data.labels[i])) for i in range(len(data))]


@pytest.mark.parametrize(
    ("name", "line", "head"),
    [
        ("a.txt", "{path} {label}", ""),
        ("a.txt", "{path}\t{label}", "# a comment\n\n"),
        ("a.tsv", "{path}\t{label}", ""),
        ("a.tsv", "{label}\tx\t{path}", "label\tnote\tpath\n"),
        ("a.csv", "{path},{label}", "\ufefffile,identity\n"),
        ("a.csv", '"{path}","{label}"', ""),
        ("a.lst", "7\t{label}.000000\t{path}", ""),
        ("a.lst", "7\t{label}.000000\t0.5\t{path}", ""),
    ],
)
def test_lists(tmp_path: Path, name: str, line: str, head: str) -> None:
    write_folder(tmp_path / "images")
    rows = paths_and_labels(tmp_path / "images")
    text = head + "\n".join(line.format(path=path, label=label) for path, label in rows)
    (tmp_path / name).write_text(text, encoding="utf-8")
    data = ListImages(tmp_path / name, root=tmp_path / "images")
    same_as_golden(data)
    assert data.identities.tolist() == [0, 1, 2, 3]


def test_the_list_of_im2rec(tmp_path: Path) -> None:
    images, labels, _ = golden()
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        path = tmp_path / f"class{label}" / f"{number:02d}.{'png' if image[1:4] == b'PNG' else 'jpg'}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image)
    same_as_golden(ListImages(GOLDEN / "im2rec.lst", root=tmp_path))


def test_identities_that_look_like_numbers_but_are_not_stay_text(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("x.jpg\t007\ny.jpg\t7\n")
    data = ListImages(tmp_path / "a.tsv")
    assert data.identities.tolist() == ["007", "7"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", b"x.jpg\t1\nlonely\n", r"a\.tsv, byte 8: expected `path` and `label`, found 1 fields"),
        ("a.tsv", b"x.jpg\t1\n\t2\n", r"byte 8: the path is empty"),
        ("a.csv", b'x.jpg,1\n"y.jpg,2\n', r"byte 8: not a line of CSV"),
        ("a.csv", b"path,label\nx.jpg\n", r"byte 11: the line has 1 fields"),
        ("a.lst", b"1\tx.jpg\n", r"byte 0: expected `index<tab>label<tab>path`"),
        ("a.txt", b"x.jpg 1\n\xff\xfe\n", r"byte 8: not UTF-8"),
        ("a.txt", b"x.jpg 1\n\0\n", r"byte 8: a line holds a zero byte"),
        ("a.txt", b"x" * 70000, r"byte 0: a line is longer than 65536"),
        ("a.txt", b"\n\n", r"byte 0: the list names no image"),
        (
            "a.txt",
            "x.jpg 1\n".encode("utf-16"),
            r"byte 0: the file is UTF-16, as PowerShell writes it; save it as UTF-8",
        ),
        ("a.lst", b"0\t3.0\tx.jpg\n1\tnan\ty.jpg\n", r"byte 12: the label is 'nan', in 1 of 2 lines"),
        ("a.csv", b"path,label\nx.jpg,NaN\ny.jpg,NaN\nz.jpg,7\n", r"byte 11: the label is 'NaN', in 2 of 3 lines"),
    ],
)
def test_damaged_lists(tmp_path: Path, name: str, text: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(text)
    with pytest.raises(FormatError, match=message):
        ListImages(tmp_path / name)


def test_people_may_be_called_nan(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("x.jpg\tNan\ny.jpg\tIna\n")
    assert ListImages(tmp_path / "a.tsv").identities.tolist() == ["Ina", "Nan"]


def test_a_missing_image_of_a_list_names_both_files(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("x.jpg\t1\ny.jpg\t2\n")
    with pytest.raises(FormatError, match=r"listed at byte 8 of .*a\.tsv: .*y\.jpg: the image cannot be read"):
        ListImages(tmp_path / "a.tsv").read(1)


def test_columns_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("who,where\n5,x.jpg\n")
    assert ListImages(tmp_path / "a.csv", columns=("where", "who")).identities.tolist() == [5]
    with pytest.raises(FormatError, match="the first line names"):
        ListImages(tmp_path / "a.csv", columns=("where", "whom"))


@pytest.mark.parametrize("name", ["pyarrow.parquet", "pyarrow.arrow", "datasets.parquet"])
def test_parquet_and_arrow(name: str) -> None:
    pytest.importorskip("pyarrow")
    data = ParquetImages(GOLDEN / name)
    same_as_golden(data)
    assert data.identities.tolist() == (["ann", "bob", "cai", "dee"] if "datasets" in name else [0, 1, 2, 3])


def test_parquet_says_what_is_wrong(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"image": [b"x", None], "label": [0, 1]}), tmp_path / "a.parquet")
    with pytest.raises(FormatError, match=r"a\.parquet: row 1 of group 0 holds no image"):
        ParquetImages(tmp_path / "a.parquet").read(1)
    pq.write_table(pa.table({"image": [b"x", b"y"], "label": [0, None]}), tmp_path / "a.parquet")
    with pytest.raises(FormatError, match="has 1 empty cells"):
        ParquetImages(tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": [b"x"], "label": [0.5]}), tmp_path / "a.parquet")
    with pytest.raises(FormatError, match="holds double"):
        ParquetImages(tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": [b"x"], "label": [0]}), tmp_path / "a.parquet")
    with pytest.raises(FormatError, match="give image_column"):
        ParquetImages(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes((GOLDEN / "pyarrow.parquet").read_bytes()[:-20])
    with pytest.raises(FormatError, match="not a whole parquet file"):
        ParquetImages(tmp_path / "a.parquet")


def test_webdataset(tmp_path: Path) -> None:
    same_as_golden(WebDatasetImages(GOLDEN / "webdataset.tar"))
    raw = (GOLDEN / "webdataset.tar").read_bytes()
    for number in range(2):
        (tmp_path / f"a-{number}.tar").write_bytes(raw)
    for shards in (tmp_path, str(tmp_path / "a-*.tar"), [tmp_path / "a-0.tar", tmp_path / "a-1.tar"]):
        assert len(WebDatasetImages(shards)) == 24
    pytest.importorskip("webdataset")
    assert len(WebDatasetImages(str(tmp_path / "a-{0..1}.tar"))) == 24


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_webdataset_labels_in_json(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar", {"x/1.jpg": b"1", "x/1.json": b'{"who": "ann"}', "2.png": b"2", "2.json": b'{"who": "al"}'}
    )
    data = WebDatasetImages(tmp_path / "a.tar", label_field="who")
    assert data.identities[data.labels].tolist() == ["ann", "al"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"1.jpg": b"1", "2.jpg": b"2", "2.cls": b"0"}, r"a\.tar, byte 512: sample '1' has no label"),
        ({"1.cls": b"0"}, "sample '1' has no image"),
        ({"1.jpg": b"1", "1.png": b"1", "1.cls": b"0"}, "has two images"),
        ({"1.jpg": b"1", "1.json": b"{1]"}, "the label cannot be read"),
        ({"1.jpg": b"1", "1.json": b'{"label": true}'}, "is True"),
        ({"1.jpg": b"1", "1.cls": b"\xff"}, "the label cannot be read"),
        ({"1.txt": b""}, "has no image"),
        ({}, "no sample"),
    ],
)
def test_damaged_samples(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(FormatError, match=message):
        WebDatasetImages(tmp_path / "a.tar")


def test_damaged_tars(tmp_path: Path) -> None:
    raw = (GOLDEN / "webdataset.tar").read_bytes()
    path = tmp_path / "a.tar"
    path.write_bytes(raw[:700])
    with pytest.raises(FormatError, match=r"a\.tar, byte"):
        WebDatasetImages(path)
    broken = bytearray(raw)
    broken[2 * 1024 + 10] ^= 1  # in the middle of a header: tarfile would take it for the end
    path.write_bytes(broken)
    with pytest.raises(FormatError, match=r"a\.tar, byte \d+: "):
        WebDatasetImages(path)


def test_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    same_as_golden(
        HuggingFaceImages("parquet", data_files=str(GOLDEN / "datasets.parquet"), cache_dir=str(tmp_path / "c"))
    )
    images, labels, _ = golden()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [{"bytes": image, "path": None} for image in images], "label": labels}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)}).save_to_disk(
        str(tmp_path / "d")
    )
    same_as_golden(HuggingFaceImages(tmp_path / "d"))
    same_as_golden(HuggingFaceImages(tmp_path / "d", split="train"))
    with pytest.raises(FormatError, match="split is 'test'"):
        HuggingFaceImages(tmp_path / "d", split="test")
    with pytest.raises(FormatError, match="no column 'x'"):
        HuggingFaceImages(tmp_path / "d", image_column="x")


@pytest.mark.parametrize(("library", "open_it"), [("pyarrow", ParquetImages), ("datasets", HuggingFaceImages)])
def test_a_missing_library_is_named(library: str, open_it: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == library:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingLibraryError, match=rf"pip install {library}.*lightning-pfc\[data\]"):
        open_it(GOLDEN)


@pytest.mark.parametrize(
    "name", ["mxnet_headered.rec", "pyarrow.parquet", "pyarrow.arrow", "webdataset.tar", "datasets.parquet"]
)
def test_the_format_follows_from_the_path(name: str) -> None:
    if "rec" not in name and "tar" not in name:
        pytest.importorskip("pyarrow")
    same_as_golden(open_images(GOLDEN / name))


def test_open_images_says_what_it_cannot_tell(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(b"")
    with pytest.raises(ValueError, match="give format"):
        open_images(tmp_path / "a.dat")
    with pytest.raises(ValueError, match="format is 'dat'"):
        open_images(tmp_path / "a.dat", "dat")
    with pytest.raises(FileNotFoundError):
        open_images(tmp_path / "none")


def test_subset(tmp_path: Path) -> None:
    write_folder(tmp_path)
    part = Subset(FolderImages(tmp_path), np.array([11, 0, 1]))
    assert part.labels.tolist() == [1, 0, 0]
    assert part.identities.tolist() == ["a", "d"]
    assert part.read(0) == golden()[0][11]
    with pytest.raises(ValueError, match="rows must be some of the 12"):
        Subset(FolderImages(tmp_path), np.array([12]))


@pytest.mark.parametrize("keys", [[3, 1, 1, 2], ["b", "a", "a"], [10**12, 5], [0, 1, 2]])
def test_contiguous_labels(keys: list[Any]) -> None:
    labels, identities = contiguous_labels(keys)
    assert identities[labels].tolist() == keys
    assert identities.tolist() == sorted(set(keys))


def test_patterns_of_parquet_files(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for part in ("train-0", "train-1", "test-0"):
        table = pyarrow.table({"image": [b"x", b"y"], "label": [part, "z"]})
        parquet.write_table(table, tmp_path / f"{part}.parquet")
    images = open_images(tmp_path / "train-*.parquet")
    assert images.identities.tolist() == ["train-0", "train-1", "z"]
    assert len(open_images(tmp_path / "t*-0.parquet")) == 4
    with pytest.raises(FileNotFoundError, match="no file fits"):
        open_images(tmp_path / "dev-*.parquet")
    with pytest.raises(FormatError, match=r"give a pattern, such as .*train-\*.parquet"):
        open_images(tmp_path)


def test_a_path_that_leads_to_nothing_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "data.zip").touch()
    for path, said in {
        "https://example.org/a.tar": "it is an address",
        "~/data": f"give {tmp_path}/data",
        "$DATA/faces": "a shell replaces",
        " ": "the path is empty",
        f"{tmp_path}/*.csv": "it is a pattern",
        f"{tmp_path}/*": f"or the folder, such as {tmp_path}",
        "nothing": "no such file or folder: nothing",
    }.items():
        with pytest.raises(FileNotFoundError, match=re.escape(said)):
            open_images(path)
    with pytest.raises(ValueError, match="an archive: unpack it"):
        open_images(tmp_path / "data.zip")


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ("a.jpg", "give the folder above it"),
        ("faces.csv", "give the file itself"),
        ("b/0.tar", "give one folder of shards"),
        ("b/0.parquet", "or a pattern"),
        ("faces.zip", "is an archive: unpack it"),
        ("metadata.csv", "data=huggingface"),
        (".hidden/0.tar", "IDENTITY/image.jpg$"),
    ],
)
def test_a_folder_without_identities_says_what_lies_in_it(tmp_path: Path, inside: str, said: str) -> None:
    (tmp_path / inside).parent.mkdir(exist_ok=True)
    (tmp_path / inside).touch()
    with pytest.raises(FormatError, match=said):
        FolderImages(tmp_path)


def test_a_file_under_two_labels_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_text("a.jpg,anna\nb.jpg,bob\na.jpg,anna\n")
    ListImages(tmp_path / "a.csv")
    assert not caplog.records
    (tmp_path / "b.csv").write_text("a.jpg,anna\nb.jpg,bob\n./a.jpg,bob\nx/../b.jpg,cid\n")
    ListImages(tmp_path / "b.csv")
    assert "a.jpg is listed as anna and as bob; 2 files are listed under two labels" in caplog.text


@pytest.mark.parametrize("labels", [[-1, 0, 1, -1], [-1, -1, 5, 6]])
def test_labels_below_zero_are_nobody(tmp_path: Path, labels: list[int]) -> None:
    """They were one class."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    names = [f"{number}.jpg" for number in range(4)]
    (tmp_path / "a.csv").write_text("".join(f"{name},{label}\n" for name, label in zip(names, labels, strict=True)))
    parquet.write_table(pyarrow.table({"image": [b"x"] * 4, "label": labels}), tmp_path / "a.parquet")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, label in zip(names, labels, strict=True):
            for member, data in ((name, b"x"), (f"{name[0]}.cls", str(label).encode())):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    for suffix in ("csv", "parquet", "tar"):
        with pytest.raises(FormatError, match=r"the label is -1, in 2 of 4 images: below zero stands for no identity"):
            open_images(tmp_path / f"a.{suffix}")
    (tmp_path / "b.csv").write_text("a.jpg,-1\nb.jpg,ann\n")  # names
    assert open_images(tmp_path / "b.csv").identities.tolist() == ["-1", "ann"]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("1e3 1000", "the labels 1000 and 1e3 are one number, and two classes here"),
        ("+1 1", "are one number"),
        ("0.5 1.25 2.5", "numbers with a fraction, such as 0.5; each of 3 is a class of its own"),
        ("1.0 2.0", ""),
        ("1e3 ann 1000", ""),
        ("1000000000000 999999999999", ""),
    ],
)
def test_numbers_that_become_names_are_told(
    tmp_path: Path, labels: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [f"{number}.jpg,{label}\n" for number, label in enumerate(labels.split())]
    (tmp_path / "a.csv").write_text("".join(lines))
    assert ListImages(tmp_path / "a.csv").num_classes == len(lines)
    assert said in caplog.text
    assert bool(said) == bool(caplog.records)


def test_a_column_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,label,Label\na.jpg,1,2\n")
    with pytest.raises(FormatError, match="names the column 'label' twice"):
        ListImages(tmp_path / "a.csv")
