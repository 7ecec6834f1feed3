"""Text formats fed by hypothesis: whatever is written in them, they are read, or refused by the documented error."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_pfc.data.arrays import NpyFile, read_npy, read_npz
from lightning_pfc.data.curation.alignment import read_landmarks
from lightning_pfc.data.errors import BrokenImageError, FormatError, reading
from lightning_pfc.data.formats import ListImages
from lightning_pfc.data.formats.base import contiguous_labels
from lightning_pfc.data.formats.recordio_index import read_index
from lightning_pfc.data.formats.texts import Texts, text_array
from lightning_pfc.data.pictures.decoding import decode, dimensions
from lightning_pfc.data.pictures.headers import exif_orientation, jpeg_header
from lightning_pfc.evaluation import read_pairs
from lightning_pfc.evaluation.ijb import _subjects, read_table
from lightning_pfc.evaluation.pickled import read_pickled

MANY = settings(
    max_examples=1000,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

WORDS = ["a/1.jpg", "b.png", "ann", "path", "label", "TEMPLATE_ID,SUBJECT_ID", "../x", '"', "#", "0", "1", "-1", "7"]
WORDS += ["1.5", "1e400", "nan", "9" * 25, "\0", "ü", "\ud800", "\ufeff", "x" * 300, "\r\n", " "]
WORDS += ["\t", "\t", "\t", ",", ",", "\n", "\n"]
TEXT = st.one_of(
    st.lists(st.sampled_from(WORDS), max_size=40).map(lambda words: "".join(words).encode("utf-8", "surrogatepass")),
    st.binary(max_size=60),
)


def read_list(suffix: str) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        images = ListImages(path)
        assert len(images.labels) == len(images)
        assert images.labels.max() == images.num_classes - 1
        return [images.name(n) for n in range(len(images))]

    return read


TEXTS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "list.tsv": ("fuzz.tsv", read_list(".tsv")),
    "list.csv": ("fuzz.csv", read_list(".csv")),
    "list.lst": ("fuzz.lst", read_list(".lst")),
    "list.txt": ("fuzz.txt", read_list(".txt")),
    "pairs": ("fuzz.txt", read_pairs),
    "points": ("fuzz.tsv", read_landmarks),
    "index": ("fuzz.idx", read_index),
    "table": ("meta/fuzz.txt", lambda path: read_table(path, lambda fields: int(fields[0]))),
    "subjects": ("meta/fuzz.csv", _subjects),
}


@MANY
@given(TEXT)
def test_text_of_any_kind_is_read_or_refused(tmp_path: Path, data: bytes) -> None:
    for name, read in TEXTS.values():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        try:
            read(path)
        except FormatError as error:
            assert "fuzz" in str(error)  # noqa: PT017


STARTS = [
    b"",
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"II*\0",
    b"BM",
    b"GIF89a",
    b"P5\n",
    b"RIFF\x40\0\0\0WEBPVP8X",
    b"%!PS",
]


@MANY
@given(st.binary(max_size=64), st.sampled_from(STARTS))
def test_bytes_of_any_kind_are_a_picture_or_broken(data: bytes, start: bytes) -> None:
    for look in (decode, dimensions):
        with pytest.raises(BrokenImageError, match=r"^here: "):
            look(start + data, where="here", max_pixels=100)
    try:
        jpeg_header(start + data)
    except ValueError as error:
        assert "JPEG" in str(error)  # noqa: PT017
    assert 1 <= exif_orientation(start + data) <= 8
    assert 1 <= exif_orientation(b"Exif\0\0" + start + data) <= 8


PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**16), 10**16), st.text(max_size=6), st.binary(max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.lists(inner, max_size=4).map(tuple)),
    max_leaves=12,
)


@settings(MANY, max_examples=300)
@given(PLAIN, st.integers(0, 5))
def test_plain_pickles_are_read_as_pickle_reads_them(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol=protocol)

    def filled(found: Any) -> Any:
        if isinstance(found, list | tuple):
            return type(found)(filled(each) for each in found)
        return data[found.start : found.stop] if hasattr(found, "start") else found

    assert filled(read_pickled(data)) == value


@MANY
@given(st.binary(max_size=60))
def test_any_bytes_are_a_pickle_or_refused(data: bytes) -> None:
    try:
        read_pickled(data, "fuzz")
    except FormatError as error:
        assert "fuzz" in str(error)  # noqa: PT017


ARRAYS = st.sampled_from(["<f4", "<f8", "<f2", "<i8", "|u1", "|b1", "<U3", "|S2", ">i4"])


@settings(MANY, max_examples=200)
@given(ARRAYS, st.lists(st.integers(0, 3), max_size=3), st.booleans())
def test_arrays_are_read_as_numpy_reads_them(tmp_path: Path, kind: str, shape: list[int], fortran: bool) -> None:
    array = np.arange(int(np.prod(shape, dtype=int))).reshape(shape).astype(kind)
    array = np.asfortranarray(array) if fortran else array
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", a=array)
    found, names = read_npz(tmp_path / "a.npz", ["a", "b"])
    assert names == ["a"]
    for again in (read_npy(tmp_path / "a.npy"), found["a"]):
        assert again.dtype == array.dtype
        np.testing.assert_array_equal(again, array)
    rows = NpyFile(tmp_path / "a.npy")
    if array.ndim and len(array):
        np.testing.assert_array_equal(rows[np.array([len(array) - 1, 0])], array[[-1, 0]])
        np.testing.assert_array_equal(rows[np.arange(len(array)) > 0], array[1:])  # type: ignore[index]
        for part in (slice(1, None), slice(None, None, 2), slice(2, 1)):
            np.testing.assert_array_equal(rows[part], array[part])


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    for name, save in (("a.npy", np.save), ("a.npz", np.savez)):
        save(tmp_path / name, np.array([{"a": 1}], dtype=object))
        with pytest.raises(FormatError, match="not a plain array of numbers or texts"):
            read_npy(tmp_path / name) if name == "a.npy" else read_npz(tmp_path / name, ["arr_0"])


def test_texts_take_the_room_that_they_need() -> None:
    names = ["a", "ü" * 50_000, "b"] + [f"{n}" for n in range(5000)]
    texts = Texts([*names, "x\udc80"])
    assert [texts[0], texts[1], texts[2], texts[len(texts) - 1]] == ["a", "ü" * 50_000, "b", "x\udc80"]
    assert text_array(["b", "a"]).dtype.kind == "U"
    assert text_array(names).dtype.kind == "O"
    labels, identities = contiguous_labels(names)
    assert identities[labels].tolist() == names
    assert identities.tolist() == sorted(set(names))
    assert contiguous_labels(["a", "a\0"])[0].tolist() == [0, 1]  # NumPy drops zeros at the end of its texts


def test_the_boundary_lets_pass_what_is_documented() -> None:
    for error in (KeyError("x"), RecursionError(), EOFError("end"), MemoryError(), OSError(5, "disk"), TypeError("t")):
        with pytest.raises(FormatError, match=r"^a\.x: ") as caught, reading("a.x", "a list"):
            raise error
        assert caught.value.__cause__ is error
        assert len(str(caught.value).splitlines()) == 1
    for left in (FileNotFoundError("gone"), FormatError("said"), KeyboardInterrupt()):
        with pytest.raises(type(left)) as passed, reading("a.x", "a list"):
            raise left
        assert passed.value is left
    with io.BytesIO(b"fine") as file, reading("a.x", "a list"):
        assert file.read() == b"fine"
