"""Splits and shards of a data set: not mixed, not taken for identities, none missing in silence."""

from __future__ import annotations

import io
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_pfc.data.formats import FormatError, open_images
from lightning_pfc.data.formats.recordio_writer import RecordWriter, pack_image
from lightning_pfc.data.parts import split_of


def picture(value: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(out, "PNG")
    return out.getvalue()


def folder(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(number))


def table(path: Path, labels: list[int]) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [{"bytes": picture(n), "path": None} for n in labels], "label": labels}), path)


def shard(path: Path, labels: list[int]) -> None:
    with tarfile.open(path, "w") as tar:
        for number, label in enumerate(labels):
            for suffix, data in (("png", picture(label)), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{number:03d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("names", [("train",), ("train", "val"), ("Train", "Test", "valid")])
def test_splits_are_no_identities(tmp_path: Path, names: tuple[str, ...]) -> None:
    folder(tmp_path, *(f"{name}/{who}/0.png" for name in names for who in ("ann", "bob")))
    with pytest.raises(FormatError, match=rf"splits of a data set, not identities; give one .*{tmp_path}/[Tt]"):
        open_images(tmp_path)
    assert open_images(tmp_path / names[0]).identities.tolist() == ["ann", "bob"]


def test_identities_may_be_called_like_splits(tmp_path: Path) -> None:
    folder(tmp_path / "flat", "dev/0.png", "val/0.png")  # pictures lie in them at once
    assert open_images(tmp_path / "flat").identities.tolist() == ["dev", "val"]
    folder(tmp_path / "other", "ann/a/0.png", "test/b/0.png")
    assert open_images(tmp_path / "other").identities.tolist() == ["ann", "test"]


def test_pictures_with_a_table_beside_them_are_told_from_identities(tmp_path: Path) -> None:
    folder(tmp_path, "0.png")
    with pytest.raises(FormatError, match=r"image\.jpg; its images lie in it directly"):
        open_images(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "label": "ann"}')
    with pytest.raises(FormatError, match="it is data=huggingface"):
        open_images(tmp_path)


@pytest.mark.parametrize("below", ["", "data/"])
def test_tables_of_several_splits_are_not_one_set(tmp_path: Path, below: str) -> None:
    table(tmp_path / f"{below}train-00000-of-00001.parquet", [0, 1])
    assert len(open_images(tmp_path)) == 2
    table(tmp_path / f"{below}test-00000-of-00001.parquet", [2])
    with pytest.raises(FormatError, match="splits test, train, which would become one set"):
        open_images(tmp_path)
    chosen = open_images(tmp_path, "huggingface", split="test")
    assert chosen.identities.tolist() == [2]
    both = [tmp_path / f"{below}{name}-00000-of-00001.parquet" for name in ("train", "test")]
    assert len(open_images(both, "parquet")) == 3  # type: ignore[arg-type]  # by name, whatever they are called


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    for number in (0, 2):
        table(tmp_path / f"train-{number:05d}-of-00003.parquet", [number])
    for kind in ("parquet", "huggingface"):
        with pytest.raises(FormatError, match=r"1 of 3 shards are not there, the first is .*train-00001-of-00003"):
            open_images(tmp_path, kind)
    table(tmp_path / "train-00001-of-00003.parquet", [1])
    assert open_images(tmp_path).labels.tolist() == [0, 1, 2]


def test_tars_of_several_splits_are_not_one_set(tmp_path: Path) -> None:
    shard(tmp_path / "train-000000.tar", [0, 1])
    shard(tmp_path / "val-000000.tar", [0])
    with pytest.raises(FormatError, match=r"splits train, validation.*train-\*\.tar"):
        open_images(tmp_path)
    assert len(open_images(tmp_path / "train-*.tar")) == 2
    assert len(open_images(tmp_path / "*.tar")) == 3  # asked for
    (tmp_path / "val-000000.tar").unlink()
    shard(tmp_path / "train-00001-of-00002.tar", [0])
    with pytest.raises(FormatError, match="1 of 2 shards are not there, the first is train-00000-of-00002"):
        open_images(tmp_path)


def test_an_index_that_ends_early_is_told(tmp_path: Path) -> None:
    path, index = tmp_path / "a.rec", tmp_path / "a.idx"
    with RecordWriter(path) as writer:
        for number in range(6):
            writer.write(pack_image(number // 2, picture(number), key=number))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(open_images(path)) == 6
    lines = index.read_text().splitlines()
    kept = [line for line in lines if int(line.split("\t")[0]) in range(4)]
    index.write_text("\n".join(kept))
    with pytest.warns(UserWarning, match=r"a\.idx ends before .*a\.rec does: [\d,]+ bytes"):
        assert len(open_images(path)) < 6


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00001.parquet", "train"),
        ("data/extra-00000-of-00001.parquet", "extra"),
        ("val.parquet", "validation"),
        ("eval/0.parquet", "test"),
        ("attest.parquet", None),
        ("contrain.arrow", None),
    ],
)
def test_the_split_of_a_name(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_numbers_are_not_kept_between_folders(tmp_path: Path) -> None:
    for part, count in (("a", 1), ("b", 2)):
        for number in range(count):
            table(tmp_path / part / f"train-{number:05d}-of-{count:05d}.parquet", [number])
    assert np.bincount(open_images(tmp_path, "parquet").labels).tolist() == [2, 1]
