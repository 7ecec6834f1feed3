"""Lists of pairs over folders of images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from lightning_pfc.data.formats import FormatError
from lightning_pfc.evaluation.pairs import ListedPair, PairedImages, read_pairs


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_the_layout_of_lfw(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.txt", "5\t300\nAnn\t1\t12\nBob Lee\t3\tCid\t4\n")
    expected = [
        ListedPair("Ann/Ann_0001", "Ann/Ann_0012", True),
        ListedPair("Bob Lee/Bob Lee_0003", "Cid/Cid_0004", False),
    ]
    assert read_pairs(path) == (expected, 5)
    assert read_pairs(write(path, "2200\nAnn 1 12\n")) == (expected[:1], 10)


@pytest.mark.parametrize("separator", ["\t", ",", " ", ", "])
def test_plain_layout(tmp_path: Path, separator: str) -> None:
    lines = [
        "# a comment",
        "",
        separator.join(("a/1.jpg", "b/2.png", "0")),
        separator.join(("a/1.jpg", "a/2.jpg", "1")),
    ]
    path = write(tmp_path / "list.txt", "\ufeff" + "\r\n".join(lines))
    assert read_pairs(path)[0] == [ListedPair("a/1.jpg", "b/2.png", False), ListedPair("a/1.jpg", "a/2.jpg", True)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no pair"),
        ("# only\n", "names no pair"),
        ("a b 1\na b\n", "byte 6: expected `image1 image2 0|1`, found 'a b'"),
        ("a b 2\n", "expected `image1"),
        ("10 300\nAnn 1 x\n", r"byte 7: expected `name i j`"),
        ("../a b 1\n", "expected"),
        ("/etc/passwd b 1\n", "expected"),
        ("10 300\n../../x 1 2\n", "expected"),
        ("a" * 20000, "longer than 16384 bytes"),
    ],
)
def test_bad_lists_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_pairs(write(tmp_path / "bad.txt", text))


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"a b 1\n\xff\xfe b 1\n")
    with pytest.raises(FormatError, match="byte 6: not UTF-8"):
        read_pairs(tmp_path / "bad.txt")
    with pytest.raises(FileNotFoundError, match="no such list"):
        read_pairs(tmp_path / "none.txt")


def test_images_of_a_list(tmp_path: Path) -> None:
    for name in ("Ann/Ann_0001.png", "Ann/Ann_0002.jpg", "Bob/Bob_0001.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (10, 20, 30)).save(tmp_path / name)
    path = write(tmp_path / "pairs.txt", "1 1\nAnn 1 2\nAnn 1 Bob 1\nAnn 2 Bob 1\n")
    images = PairedImages(path)
    assert images.names == ["Ann/Ann_0001", "Ann/Ann_0002", "Bob/Bob_0001"]
    assert images.identities.tolist() == [0, 0, 1]
    pairs = images.pairs()
    assert (pairs.first.tolist(), pairs.second.tolist(), pairs.same.tolist()) == (
        [0, 0, 1],
        [1, 2, 2],
        [True, False, False],
    )
    assert torch.equal(pairs.fold, torch.full((3,), -1))
    assert images.read(2) == (tmp_path / "Bob/Bob_0001.jpg").read_bytes()
    assert images.locate(2).endswith("Bob_0001.jpg")
    (tmp_path / "Bob/Bob_0001.jpg").unlink()
    with pytest.raises(FormatError, match=r"1 of 3 images are not in .*'Bob/Bob_0001'"):
        PairedImages(path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        PairedImages(path, tmp_path / "none")


def test_a_pair_has_one_answer(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("a.jpg b.jpg 1\nc.jpg d.jpg 0\nb.jpg a.jpg 0\n")
    with pytest.raises(FormatError, match=r"b\.jpg and a\.jpg are listed as one identity and as two"):
        read_pairs(tmp_path / "pairs.txt")
