"""Verification files: every dialect of pickle that people have, and nothing that is not plain data."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_pfc.data.formats import FormatError
from lightning_pfc.evaluation.bins import BinImages, write_bin
from lightning_pfc.evaluation.pickled import read_pickled


def jpeg(seed: int, size: int = 16) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


IMAGES = [jpeg(i) for i in range(6)]
SAME = [True, False, True]


def as_array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype=np.uint8).copy()


LAYOUTS: dict[str, Any] = {
    "bytes": (IMAGES, SAME),
    "lists": [IMAGES, SAME],
    "bytearrays": ([bytearray(i) for i in IMAGES], SAME),
    "arrays": ([as_array(i) for i in IMAGES], SAME),
    "column arrays": ([as_array(i)[:, None] for i in IMAGES], SAME),
    "numpy flags": (IMAGES, [np.bool_(s) for s in SAME]),
    "flag array": ([as_array(i) for i in IMAGES], np.array(SAME)),
    "numbers": (IMAGES, [1, 0, 1]),
    "byte numbers": (IMAGES, [np.uint8(s) for s in SAME]),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_protocol_reads_back(tmp_path: Path, layout: str, protocol: int) -> None:
    path = tmp_path / "set.bin"
    path.write_bytes(pickle.dumps(LAYOUTS[layout], protocol=protocol))
    images = BinImages(path)
    assert [images.read(i) for i in range(6)] == IMAGES
    assert images.same.tolist() == SAME
    # What pickle itself optimises away or shares must not matter.
    path.write_bytes(pickletools.optimize(pickle.dumps(LAYOUTS[layout], protocol=protocol)))
    assert [BinImages(path).read(i) for i in range(6)] == IMAGES


def test_a_shared_image_is_read_for_each_place(tmp_path: Path) -> None:
    path = tmp_path / "set.bin"
    array = as_array(IMAGES[0])
    for content in (([IMAGES[0]] * 80, [True] * 40), ([array] * 80, [True] * 40)):
        for protocol in range(6):
            path.write_bytes(pickle.dumps(content, protocol=protocol))
            assert [BinImages(path).read(i) for i in range(80)] == [IMAGES[0]] * 80


# Written by CPython 2.7.18: pickle.dumps((['\xff\xd8a\n', "it's"], [True]), protocol)
PYTHON_2 = {
    0: b"((lp0\nS'\\xff\\xd8a\\n'\np1\naS\"it's\"\np2\na(lp3\nI01\natp4\n.",
    1: b"(]q\x00(U\x04\xff\xd8a\nq\x01U\x04it'sq\x02e]q\x03I01\natq\x04.",
    2: b"\x80\x02]q\x00(U\x04\xff\xd8a\nq\x01U\x04it'sq\x02e]q\x03\x88a\x86q\x04.",
}
# The array that Python 2 and NumPy 1 write for np.frombuffer('\xff\xd8a', np.uint8) with protocol 2.
PYTHON_2_ARRAY = (
    b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87Rq\x04(K\x01K\x03\x85"
    b"cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87Rq\x06(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x03\xff\xd8atb"
)


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_python_2_strings(tmp_path: Path, protocol: int) -> None:
    assert pickle.loads(PYTHON_2[protocol], encoding="bytes") == ([b"\xff\xd8a\n", b"it's"], [True])
    path = tmp_path / "py2.bin"
    path.write_bytes(PYTHON_2[protocol])
    images = BinImages(path)
    assert [images.read(0), images.read(1), images.same.tolist()] == [b"\xff\xd8a\n", b"it's", [True]]


def test_python_2_arrays(tmp_path: Path) -> None:
    path = tmp_path / "py2.bin"
    path.write_bytes(b"\x80\x02](" + PYTHON_2_ARRAY + b"h\x04e]\x88a\x86.")
    assert [BinImages(path).read(i) for i in range(2)] == [b"\xff\xd8a"] * 2


def test_what_is_written_is_what_pickle_reads(tmp_path: Path) -> None:
    path = tmp_path / "new.bin"
    write_bin(path, IMAGES, SAME)
    assert pickle.loads(path.read_bytes()) == (IMAGES, SAME)
    images = BinImages(path)
    again = pickle.loads(pickle.dumps(images))  # a worker's copy
    for table in (images, again):
        assert [table.read(i) for i in range(6)] == IMAGES
    assert [p.name for p in tmp_path.iterdir()] == ["new.bin"]
    with pytest.raises(ValueError, match="images has 5 entries for 3 pairs"):
        write_bin(path, IMAGES[:5], SAME)
    with pytest.raises(ValueError, match="without bytes"):
        write_bin(path, [b""] * 2, [True])


def test_pairs_and_folds(tmp_path: Path) -> None:
    path = tmp_path / "set.bin"
    write_bin(path, IMAGES * 7, SAME * 7)
    pairs = BinImages(path).pairs()
    assert torch.equal(pairs.first, torch.arange(21) * 2)
    assert torch.equal(pairs.second, torch.arange(21) * 2 + 1)
    assert torch.bincount(pairs.fold).tolist() == [3] + [2] * 9
    write_bin(path, IMAGES, SAME)
    assert BinImages(path).pairs().fold.tolist() == [-1] * 3


class Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


@pytest.mark.parametrize("protocol", range(6))
def test_code_is_never_run(tmp_path: Path, protocol: int) -> None:
    witness, path = tmp_path / "witness", tmp_path / "evil.bin"
    data = pickle.dumps((IMAGES, SAME, Evil(str(witness))), protocol=protocol)
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"evil\.bin, byte \d+.*(io|_io|__builtin__)\.open"):
        BinImages(path)
    assert not witness.exists()
    pickle.loads(data)[2].close()
    assert witness.exists()  # the file would have done it


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((IMAGES[:5], SAME), "5 images for 3 pairs"),
        (([], []), "no pair in it"),
        ((IMAGES, [True, False, 2]), r"same\[2\] is neither"),
        ((IMAGES, [True, False, None]), r"same\[2\] is neither"),
        ((IMAGES, SAME, 1), "expected a pair"),
        (IMAGES, "expected a pair"),
        (({}, SAME), "the images are a dict"),
        ((["text"] * 6, SAME), "image 0 is a str"),
        (([*IMAGES[:5], b""], SAME), "image 5 has no bytes"),
        ((b"images", SAME), "the images are a Span"),
        ((IMAGES, b"same"), "same is a Span"),
        (([np.arange(3.0)] * 6, SAME), "only uint8 and bool"),
        (([1 << 80] * 6, SAME), "a number of 11 bytes"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "bad.bin"
    path.write_bytes(pickle.dumps(content, protocol=4))
    with pytest.raises(FormatError, match=message):
        BinImages(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"\x80\x04", "1 bytes are announced, 0 are left"),
        (b"\x80\x09.", "protocol 9"),
        (b".", "stack is empty"),
        (b"(.", "stack is empty"),
        (b"B\xff\xff\xff\xffab.", "4294967295 bytes are announced"),
        (b"\x8e" + b"\xff" * 8 + b".", "are announced"),
        (b"T\xff\xff\xff\xffab.", "-1 bytes are announced"),
        (b"h\x07.", "memo 7 was never set"),
        (b"r\xff\xff\xff\xff.", "nothing to remember"),
        (b"L" + b"9" * 40 + b"L\n.", "is not a number"),
        (b"L" + b"9" * 2_000_000, "does not end"),
        (b"S'\\\n.", "damaged"),
        (b"S'a' + 'b'\n.", "damaged"),
        (b"X\x01\x00\x00\x00\xff.", "not UTF-8"),
        (b"cos\nsystem\n(S'true'\ntR.", r"os\.system"),
        (b"NNR.", "not on the list"),
        (b"NNb.", "state for something"),
        (b"Na.", "not a list"),
        (b"NNa.", "not a list"),
        (b"e.", "no mark"),
        (b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(U\x02u1tRU\x02abtR.", "a NumPy scalar of 2 bytes"),
    ],
)
def test_damage_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "bad.bin"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=message) as caught:
        BinImages(path)
    assert caught.value.path == str(path)


def test_an_array_cannot_announce_more_than_it_has() -> None:
    huge = b"\x80\x02" + PYTHON_2_ARRAY.replace(b"K\x01K\x03\x85", b"K\x01J\xff\xff\xff\x7f\x85") + b"."
    with pytest.raises(FormatError, match=r"shape \(2147483647,\) with 3 bytes"):
        read_pickled(huge)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such verification file.*x\.bin"):
        BinImages(tmp_path / "x.bin")
    path = tmp_path / "set.bin"
    write_bin(path, IMAGES, SAME)
    with pytest.raises(IndexError, match="holds 6 images"):
        BinImages(path).read(6)
