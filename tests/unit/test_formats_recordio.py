"""RecordIO: files of mxnet read back identically, damage is refused with file and offset, wide labels survive."""

from __future__ import annotations

import multiprocessing as mp
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from lightning_pfc.data.formats import FormatError, RecordIOImages, RecordWriter
from lightning_pfc.data.formats import recordio_images as module
from lightning_pfc.data.formats.recordio import MAGIC_BYTES, RecordFile
from lightning_pfc.data.formats.recordio_headers import read_headers
from lightning_pfc.data.formats.recordio_index import read_index
from lightning_pfc.data.formats.recordio_writer import pack_image, pack_range, pack_record
from tests.golden_formats import GOLDEN, golden


def write_headered(path: Path, labels: list[int], images: list[bytes]) -> None:
    first = len(labels) + 1
    with RecordWriter(path) as writer:
        writer.write(pack_range(first, first + len(set(labels)), key=0))
        for key, (label, image) in enumerate(zip(labels, images, strict=True), start=1):
            writer.write(pack_image(label, image, key=key))
        for number, label in enumerate(sorted(set(labels))):
            start = labels.index(label) + 1
            writer.write(pack_range(start, start + labels.count(label), key=first + number))


@pytest.mark.parametrize("name", ["mxnet_flat", "mxnet_headered", "mxnet_arrays", "im2rec"])
def test_reads_what_mxnet_wrote(name: str) -> None:
    images, labels, _ = golden()
    data = RecordIOImages(GOLDEN / f"{name}.rec")
    assert [data.read(i) for i in range(len(data))] == images
    np.testing.assert_array_equal(data.labels, labels)
    assert data.labels.dtype == np.int64
    np.testing.assert_array_equal(data.identities, np.arange(4))
    assert data.num_classes == 4
    assert data.has_header == (name == "mxnet_headered")


def test_writes_the_bytes_that_mxnet_writes(tmp_path: Path) -> None:
    images, labels, hostile = golden()
    write_headered(tmp_path / "mxnet_headered.rec", labels.tolist(), images)
    with RecordWriter(tmp_path / "mxnet_flat.rec") as writer:
        for key, (label, image) in enumerate(zip(labels.tolist(), images, strict=True)):
            writer.write(pack_image(label, image, key=key))
    with RecordWriter(tmp_path / "mxnet_hostile.rec") as writer:
        for key, payload in enumerate(hostile):
            writer.write(pack_image(key, payload, key=key))
    for name in ("mxnet_headered", "mxnet_flat", "mxnet_hostile"):
        for ending in ("rec", "idx"):
            file = f"{name}.{ending}"
            assert (tmp_path / file).read_bytes() == (GOLDEN / file).read_bytes(), file


def test_parts_are_joined_with_the_magic_between_them() -> None:
    _, _, hostile = golden()
    assert any(payload.startswith(MAGIC_BYTES) for payload in hostile)
    raw = (GOLDEN / "mxnet_hostile.rec").read_bytes()
    assert {word >> 29 for word in struct.unpack("<" + "I" * (len(raw) // 4), raw)} >= {1, 2, 3}  # it has parts
    records = RecordFile(GOLDEN / "mxnet_hostile.rec")
    _, offsets = read_index(GOLDEN / "mxnet_hostile.idx")
    assert [records.read(offset)[1] for offset in offsets.tolist()] == hostile
    assert read_headers(records, offsets).length.tolist() == [len(payload) for payload in hostile]
    assert list(records.scan()) == offsets.tolist()


def test_without_an_index_the_records_are_found(tmp_path: Path) -> None:
    images, labels, _ = golden()
    (tmp_path / "train.rec").write_bytes((GOLDEN / "mxnet_headered.rec").read_bytes())
    data = RecordIOImages(tmp_path)
    assert [data.read(i) for i in range(len(data))] == images
    np.testing.assert_array_equal(data.labels, labels)


def test_index_need_not_be_sorted_and_may_end_lines_as_windows_does(tmp_path: Path) -> None:
    lines = (GOLDEN / "mxnet_headered.idx").read_text().split("\n")[:-1]
    shuffled = tmp_path / "shuffled.idx"
    shuffled.write_bytes("\r\n".join(lines[::-1]).encode())
    data = RecordIOImages(GOLDEN / "mxnet_headered.rec", index=shuffled)
    assert [data.read(i) for i in range(len(data))] == golden()[0]


def test_labels_with_gaps_become_contiguous_and_keep_their_names(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "gaps.rec") as writer:
        for key, label in enumerate([70, 3, 70, 12]):
            writer.write(pack_image(label, b"image", key=key))
    data = RecordIOImages(tmp_path / "gaps.rec")
    assert data.labels.tolist() == [2, 0, 2, 1]
    assert data.identities.tolist() == [3, 12, 70]


def test_labels_beyond_float32_survive_in_id2(tmp_path: Path) -> None:
    labels = [2**24 - 1, 2**24, 2**24 + 1, 2**24 + 2, 2**40 + 1]
    with RecordWriter(tmp_path / "wide.rec") as writer:
        for key, label in enumerate(labels):
            writer.write(pack_image(label, b"image", key=key))
    data = RecordIOImages(tmp_path / "wide.rec")
    assert data.identities[data.labels].tolist() == labels


def test_labels_lost_to_float32_are_refused(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "lost.rec") as writer:
        for key, label in enumerate([5, 2**24 + 1]):
            writer.write(struct.pack("<IfQQ", 0, label, key, 0) + b"image")  # as mxnet would
    with pytest.raises(FormatError, match=r"lost\.rec, byte 40: the label 16777216 .* float32"):
        RecordIOImages(tmp_path / "lost.rec")


@pytest.mark.parametrize("by", ["mxnet", "here"])
def test_id_start_beyond_float32_is_found(tmp_path: Path, by: str) -> None:
    """A file the size of WebFace42M, all keys but the last few left out of the index."""
    id_start, keys = 42_474_558, range(42_474_540, 42_474_562)
    assert int(np.float32(id_start)) != id_start
    with RecordWriter(tmp_path / "a.rec") as writer:
        header = pack_range(id_start, id_start + 4, key=0)
        if by == "mxnet":
            header = struct.pack("<IfQQ2f", 2, 0, 0, 0, id_start, id_start + 4)
        writer.write(header)
        for key in keys:
            writer.write(pack_image(1, b"image", key=key) if key < id_start else pack_range(1, 2, key=key))
    numbers, offsets = read_index(tmp_path / "a.idx")
    numbers[1:] = list(keys)
    data = RecordIOImages.__new__(RecordIOImages)
    data.records, data.source = RecordFile(tmp_path / "a.rec"), "a.rec"
    assert data._find_id_start(numbers, offsets) == id_start


def test_ranges_give_the_labels_of_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [0] * 3 + [1] + [2] * 2
    write_headered(tmp_path / "a.rec", labels, [b"image"] * 6)
    monkeypatch.setattr(module, "FULL_SCAN", 0)
    read: list[int] = []
    real = module.read_headers
    monkeypatch.setattr(module, "read_headers", lambda r, o: (read.append(len(o)), real(r, o))[1])  # type: ignore[func-returns-value]
    assert RecordIOImages(tmp_path / "a.rec").labels.tolist() == labels
    assert read == [1, 3, 6]  # the first identity record, all three, and the ends of their ranges


def test_ranges_that_the_images_contradict_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [0, 1, 0, 1, 2, 2]
    write_headered(tmp_path / "a.rec", labels, [b"image"] * 6)
    monkeypatch.setattr(module, "FULL_SCAN", 0)
    assert RecordIOImages(tmp_path / "a.rec").labels.tolist() == labels


def _read_all(data: RecordIOImages) -> list[bytes]:
    return [data.read(i) for i in range(len(data))]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_reads_in_other_processes(method: str) -> None:
    data = RecordIOImages(GOLDEN / "mxnet_flat.rec")
    images = _read_all(data)  # the map is open when the processes start
    with mp.get_context(method).Pool(1) as pool:
        assert pool.map(_read_all, [data]) == [images]
        pool.close()
        pool.join()


def test_survives_pickling() -> None:
    data = RecordIOImages(GOLDEN / "mxnet_flat.rec")
    assert _read_all(pickle.loads(pickle.dumps(data))) == _read_all(data)


def test_resuming_continues_behind_the_last_whole_record(tmp_path: Path) -> None:
    images, labels, _ = golden()
    records = [
        pack_image(int(label), image, key=key) for key, (label, image) in enumerate(zip(labels, images, strict=True))
    ]
    path = tmp_path / "mxnet_flat.rec"
    with RecordWriter(path) as writer:
        for record in records[:7]:
            writer.write(record)
    path.write_bytes(path.read_bytes()[:-5])  # the last record did not reach the disk
    with (tmp_path / "mxnet_flat.idx").open("ab") as index:
        index.write(b"7\t12")  # nor did this line
    with RecordWriter(path, resume=True) as writer:
        assert writer.next_key == 6
        for record in records[6:]:
            writer.write(record)
    assert path.read_bytes() == (GOLDEN / "mxnet_flat.rec").read_bytes()
    assert (tmp_path / "mxnet_flat.idx").read_bytes() == (GOLDEN / "mxnet_flat.idx").read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"0\t0\n1\n", r"a\.idx, byte 4: expected"),
        (b"0\t0\nx\t9\n", r"a\.idx, byte 4: expected"),
        (b"0\t0\n1\t-5\n", r"a\.idx, byte 4: expected"),
        (b"0\t0\n1\t99999999999999999999\n", r"a\.idx, byte 4: expected"),
        (b"0\t0\n1\t2.5\n", r"a\.idx, byte 4: expected"),
        (b"0\t0\n0\t40\n", "key 0 occurs more than once"),
        (b"0\t\xff\n", r"a\.idx, byte 2"),
        (b"", r"a\.rec: there is not one record"),
        (b"0\t4\n", r"a\.rec, byte 4: no record begins here"),
        (b"0\t400000\n", r"a\.rec, byte 400000: a record should begin here"),
    ],
)
def test_damaged_indexes(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "a.rec").write_bytes((GOLDEN / "mxnet_flat.rec").read_bytes())
    (tmp_path / "a.idx").write_bytes(text)
    with pytest.raises(FormatError, match=message):
        RecordIOImages(tmp_path / "a.rec")


def test_damaged_records_name_file_and_offset(tmp_path: Path) -> None:
    def opened(data: bytes, index: bytes = b"0\t0\n") -> RecordIOImages:
        (tmp_path / "a.rec").write_bytes(data)
        (tmp_path / "a.idx").write_bytes(index)
        return RecordIOImages(tmp_path / "a.rec")

    whole = pack_record(pack_image(0, b"image", key=0))
    assert len(opened(whole)) == 1
    with pytest.raises(FormatError, match=r"a\.rec, byte 0: a record of 29 bytes reaches beyond the end"):
        opened(whole[:-4])
    with pytest.raises(FormatError, match="no room for its 24-byte header"):
        opened(pack_record(b"short"))
    with pytest.raises(FormatError, match="announces 4294967295 labels"):
        opened(pack_record(struct.pack("<IfQQ", 2**32 - 1, 0, 0, 0) + b"12345678"))
    with pytest.raises(FormatError, match="label nan is not a class number"):
        opened(pack_record(struct.pack("<IfQQ", 0, float("nan"), 0, 0) + b"image"))
    with pytest.raises(FormatError, match=r"label -1\.0 is not"):
        opened(pack_record(struct.pack("<IfQQ", 0, -1, 0, 0) + b"image"))
    with pytest.raises(FormatError, match=r"label 1\.5 is not"):
        opened(pack_record(struct.pack("<IfQQ", 0, 1.5, 0, 0) + b"image"))
    with pytest.raises(FormatError, match="no image"):
        opened(pack_record(struct.pack("<IfQQ", 0, 1, 0, 0)))
    parts = bytearray(pack_record(pack_image(0, MAGIC_BYTES * 3, key=0)))
    parts[39] = 0x20  # the second part now says that it is a first one
    with pytest.raises(FormatError, match="cflag 1 inside the record that begins at byte 0"):
        opened(bytes(parts))
    with pytest.raises(FormatError, match="index is cut off"):
        opened((GOLDEN / "mxnet_headered.rec").read_bytes(), b"0\t0\n")


def test_a_large_record_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(pack_image(0, bytes(1000), key=0))
        writer.write(pack_image(0, MAGIC_BYTES * 250, key=1))
    data = RecordIOImages(tmp_path / "a.rec")
    data.records.max_record = 500
    for index in range(2):
        with pytest.raises(FormatError, match="larger than max_record=500"):
            data.read(index)
    with pytest.raises(IndexError, match="index is 2"):
        data.read(2)


def test_a_file_that_shrank_is_refused_not_mapped(tmp_path: Path) -> None:
    path = tmp_path / "mxnet_flat.rec"
    path.write_bytes((GOLDEN / "mxnet_flat.rec").read_bytes())
    data = pickle.loads(pickle.dumps(RecordIOImages(path, index=GOLDEN / "mxnet_flat.idx")))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FormatError, match="has shrunk"):
        data.read(0)
