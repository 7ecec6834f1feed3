"""The readers that are fed, and valid files of each kind to be damaged."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from damage import damage_pickle, mutate
from PIL import Image

from lightning_pfc.data.errors import FormatError

Feed = Callable[[random.Random], None]


def picture(kind: str, size: int = 24, mode: str = "RGB", **options: object) -> bytes:
    """A small picture with something to see."""
    smooth = Image.fromarray(np.random.default_rng(1).integers(0, 256, (5, 5, 3), np.uint8))
    out = io.BytesIO()
    smooth.resize((size, size), Image.Resampling.BICUBIC).convert(mode).save(out, kind, **options)
    return out.getvalue()


def deep_pictures() -> list[bytes]:
    """16 bits of grey, and a picture that lies on its side."""
    deep = Image.fromarray(np.random.default_rng(2).integers(0, 1 << 16, (20, 24), dtype=np.uint16))
    found = []
    for kind in ("PNG", "TIFF", "PPM"):
        out = io.BytesIO()
        deep.save(out, kind)
        found.append(out.getvalue())
    exif = Image.Exif()
    exif[0x0112] = 6
    return found + [picture(kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP", "TIFF")]


class Single:
    """A reader of one file: a damaged copy is written and read to its end.

    Attributes:
        name: of the file, which has "fuzz" in it.
    """

    name = "fuzz.bin"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / self.name
        self.seeds = self.make()

    def make(self) -> Sequence[bytes]:
        """Valid files."""
        raise NotImplementedError

    def read(self) -> None:
        """Reads what lies at the path to its end."""
        raise NotImplementedError

    def damage(self, data: bytes, rng: random.Random) -> bytes:
        """One to four kinds of damage."""
        return mutate(data, rng)

    def __call__(self, rng: random.Random) -> None:
        """Feeds one damaged input."""
        self.path.write_bytes(self.damage(rng.choice(self.seeds), rng))
        self.read()


def read_images(images: Any) -> None:
    """Reads a data set to its last image."""
    for place in range(len(images)):
        images.locate(place)
        if not images.read(place):
            raise AssertionError("an image without a byte")


class RecordIO:
    """A headered and a flat file, one with parts; the .rec, the .idx or both are damaged."""

    def __init__(self, folder: Path) -> None:
        from lightning_pfc.data.formats.recordio_writer import RecordWriter, pack_image, pack_range

        self.seeds: list[tuple[bytes, bytes]] = []
        self.path = folder / "fuzz.rec"
        payload = b"image" * 8 + b"\x0a\x23\xd7\xce" * 2 + b"end"
        for headered in (True, False):
            with RecordWriter(self.path) as writer:
                if headered:
                    writer.write(pack_range(5, 7, key=0))
                for key in range(4):
                    writer.write(pack_image(key // 2, payload, key=key + headered))
                for number in range(2 * headered):
                    writer.write(pack_range(1 + 2 * number, 3 + 2 * number, key=5 + number))
            self.seeds.append((self.path.read_bytes(), self.path.with_suffix(".idx").read_bytes()))

    def __call__(self, rng: random.Random) -> None:
        """Feeds one damaged input."""
        from lightning_pfc.data.formats import RecordIOImages

        rec, idx = rng.choice(self.seeds)
        which = rng.randrange(3)
        self.path.write_bytes(mutate(rec, rng) if which != 1 else rec)
        index, names = self.path.with_suffix(".idx"), self.path.with_suffix(".names.txt")
        index.unlink(missing_ok=True)
        names.unlink(missing_ok=True)
        if rng.random() < 0.9:
            index.write_bytes(mutate(idx, rng) if which else idx)
        if rng.random() < 0.2:
            names.write_bytes(mutate("ann\nbüb\n".encode(), rng))
        read_images(RecordIOImages(self.path))


class Lists:
    """TSV, CSV, both kinds of LST, and plain lists."""

    seeds = (
        (".tsv", "path\tlabel\na/1.jpg\tann\nb/2.jpg\tbob\n" * 2),
        (".tsv", "a/1.jpg\t0\nb/2.jpg\t1\nc/ü.jpg\t2\n"),
        (".csv", '"a/1.jpg",0\n"b ""2"".jpg",1\n'),
        (".lst", "0\t0.000000\ta/1.jpg\n1\t1.000000\t0.5\tb/2.jpg\n"),
        (".lst", "1\ta/1.jpg\t0\t10\t20\t30\t40\n1\tb/2.jpg\t1\n"),
        (".txt", "# comment\na/1.jpg 0\n\nb 2.jpg 1\n"),
    )

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, rng: random.Random) -> None:
        """Feeds one damaged input."""
        from lightning_pfc.data.formats import ListImages

        suffix, text = rng.choice(self.seeds)
        path = self.folder / f"fuzz{suffix}"
        path.write_bytes(mutate(text.encode(), rng))
        images = ListImages(path)
        for place in range(len(images)):
            images.locate(place)
            try:
                images.read(place)
            except FormatError as error:  # the images are not there
                if str(path) not in str(error):
                    raise AssertionError(f"the list is not named: {error}") from error


class Pictures:
    """JPEG (baseline, progressive, grey), PNG, WebP, BMP, GIF, TIFF, PPM; deep ones, and some lying on their side."""

    def __init__(self, folder: Path) -> None:
        self.jpegs = [picture("JPEG"), picture("JPEG", quality=95, subsampling=0), picture("JPEG", progressive=True)]
        self.seeds = [
            picture("PNG"), picture("PNG", mode="P"), picture("WEBP"), picture("WEBP", lossless=True),
            picture("BMP", size=12), picture("GIF"), picture("TIFF"), picture("TIFF", compression="tiff_lzw"),
            picture("TIFF", mode="CMYK"), picture("PPM"), picture("PPM", mode="1"), *deep_pictures(),
        ]  # fmt: skip

    def __call__(self, rng: random.Random) -> None:
        """Feeds one damaged input."""
        from lightning_pfc.data.preprocessing import Preprocessing

        seed = rng.choice(self.jpegs if rng.random() < 0.5 else self.seeds)
        channels = rng.choice((1, 3))
        fit: Any = rng.choice(("exact", "crop", "stretch"))
        record = Preprocessing(size=rng.choice(((24, 24), (7, 9))), channels=channels, fit=fit)
        batch = np.zeros((3, *record.size, channels), np.uint8)
        try:
            found = record.picture(mutate(seed, rng), where="fuzz.rec, byte 40", out=batch[1])
        finally:
            if batch[::2].any():
                raise AssertionError("decoded beyond the room that was given")
        if found.dtype != np.uint8 or found.shape != (*record.size, channels):
            raise AssertionError(f"decoded to {found.dtype} of shape {found.shape}")


class WebDataset(Single):
    """A tar with labels in .cls and .json, one with a long name."""

    name = "fuzz.tar"

    def make(self) -> Sequence[bytes]:  # noqa: D102
        found = []
        for form, stem in ((tarfile.USTAR_FORMAT, ""), (tarfile.GNU_FORMAT, "n" * 120), (tarfile.PAX_FORMAT, "ü" * 60)):
            with tarfile.open(self.path, "w", format=form) as archive:
                for number in range(3):
                    label = ("cls", b"1") if number else ("json", b'{"label": 3}')
                    for ending, data in (("jpg", b"image" * 9), label):
                        member = tarfile.TarInfo(f"{stem}{number}.{ending}")
                        member.size = len(data)
                        archive.addfile(member, io.BytesIO(data))
            found.append(self.path.read_bytes().rstrip(b"\0") + bytes(1024))
        return found

    def read(self) -> None:  # noqa: D102
        from lightning_pfc.data.formats import WebDatasetImages

        images = WebDatasetImages(self.path)
        for place in range(len(images)):
            images.read(place)


def tables() -> list[Any]:
    """Tables of images: bytes, structs with a path, dictionaries, large offsets."""
    import pyarrow as pa

    struct_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    dictionary = pa.array(["a"] * 6).dictionary_encode()
    rows = [{"bytes": b"image", "path": "a.jpg"}] * 3 + [{"bytes": None, "path": "gone.jpg"}]
    return [
        pa.table({"image": [b"image%d" % n for n in range(6)], "label": [0, 0, 1, 1, 2, 2]}),
        pa.table({"image": pa.array(rows, struct_type), "label": ["a", "b", "a", "c"]}),
        pa.table({"image": pa.array([b"x" * 10] * 6, pa.large_binary()), "label": dictionary}),
    ]


class Parquet(Single):
    """Parquet files; their parser is pyarrow's."""

    name = "fuzz.parquet"

    def make(self) -> Sequence[bytes]:  # noqa: D102
        import pyarrow.parquet as pq

        found = []
        for table in tables():
            for compression in ("none", "zstd"):
                out = io.BytesIO()
                pq.write_table(table, out, row_group_size=2, compression=compression)
                found.append(out.getvalue())
        return found

    def read(self) -> None:  # noqa: D102
        from lightning_pfc.data.formats import ParquetImages

        images = ParquetImages(self.path)
        for place in range(len(images)):
            images.read(place)


class Arrow(Parquet):
    """Arrow files and streams, plain and compressed; their parser is pyarrow's."""

    name = "fuzz.arrow"

    def make(self) -> Sequence[bytes]:  # noqa: D102
        import pyarrow as pa

        found = []
        for table in tables():
            for new, compression in ((pa.ipc.new_file, None), (pa.ipc.new_stream, None), (pa.ipc.new_file, "lz4")):
                out = io.BytesIO()
                with new(out, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
                    for batch in table.to_batches(max_chunksize=2):
                        writer.write_batch(batch)
                found.append(out.getvalue())
        return found


class Saved:
    """What ``save_to_disk`` writes: the JSON files, and an index of rows."""

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        self.folder = folder / "fuzz"
        self.folder.mkdir()
        rows = pa.table({"indices": pa.array([2, 0], pa.uint64())})
        for name, table in (("data.arrow", tables()[1]), ("rows.arrow", rows)):
            with pa.OSFile(str(self.folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
        features = {"image": {"_type": "Image"}, "label": {"_type": "Value", "dtype": "string"}}
        state = {"_data_files": [{"filename": "data.arrow"}], "_indices_files": [{"filename": "rows.arrow"}]}
        self.files = {
            "state.json": json.dumps(state).encode(),
            "dataset_info.json": json.dumps({"features": features}).encode(),
            "rows.arrow": (self.folder / "rows.arrow").read_bytes(),
        }

    def __call__(self, rng: random.Random) -> None:
        """Feeds one damaged input."""
        from lightning_pfc.data.formats import HuggingFaceImages

        damaged = rng.choice(list(self.files))
        for name, data in self.files.items():
            (self.folder / name).write_bytes(mutate(data, rng) if name == damaged else data)
        read_images(HuggingFaceImages(self.folder))


class Arrays(Single):
    """NumPy's files: .npz, packed and not, and .npy."""

    def make(self) -> Sequence[bytes]:  # noqa: D102
        found = []
        for save in (np.savez, np.savez_compressed):
            out = io.BytesIO()
            save(out, emb=np.eye(4, dtype=np.float32), label=np.arange(4), names=["a/1", "a/2", "b/1", "b/2"])
            found.append(out.getvalue())
        for array in (np.eye(4, dtype=np.float32), np.asfortranarray(np.ones((2, 3))), np.array(["a", "bc"])):
            out = io.BytesIO()
            np.save(out, array)
            found.append(out.getvalue())
        return found

    def __call__(self, rng: random.Random) -> None:
        """Feeds one damaged input."""
        from lightning_pfc.data.arrays import NpyFile
        from lightning_pfc.evaluation.faces import open_faces

        number = rng.randrange(len(self.seeds))
        path = self.folder / ("fuzz.npz" if number < 2 else "fuzz.npy")
        path.write_bytes(mutate(self.seeds[number], rng))
        if number < 2:
            open_faces(path, None)
            return
        rows = NpyFile(path)
        rows.whole()
        _ = rows[np.arange(min(2, len(rows)))] if rows.ndim else rows[:0]


class Bin(Single):
    """Verification files of any dialect of pickle, with instructions spliced in."""

    def make(self) -> Sequence[bytes]:  # noqa: D102
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 256, n, dtype=np.uint8) for n in (3, 40, 300, 7)]
        layouts: list[Any] = [
            ([i.tobytes() for i in images], [True, False]),
            ([bytearray(i) for i in images], [True, False]),
            (images, [True, False]),
            ([i[:, None] for i in images], np.array([True, False])),
            ([images[0]] * 4, [np.bool_(True), np.uint8(0)]),
        ]
        python2 = b"\x80\x02]q\x00(U\x04\xff\xd8a\nq\x01T\x04\x00\x00\x00it'sq\x02e]q\x03\x88a\x86q\x04."
        return [pickle.dumps(layout, protocol=p) for layout in layouts for p in range(6)] + [python2]

    def damage(self, data: bytes, rng: random.Random) -> bytes:  # noqa: D102
        return damage_pickle(data, rng)

    def read(self) -> None:  # noqa: D102
        from lightning_pfc.evaluation import BinImages

        images = BinImages(self.path)
        images.pairs()
        for place in range(len(images)):
            images.read(place)


class Pairs(Single):
    """Lists of pairs, LFW's and plain ones."""

    name = "fuzz.txt"

    def make(self) -> Sequence[bytes]:  # noqa: D102
        lfw = b"2\t2\nAnn\t1\t12\nBob Lee\t3\tCid\t4\nAnn\t1\tBob Lee\t3\nCid\t4\t5\n"
        plain = b"# c\na/1.jpg b/2.png 0\na/1.jpg,a/2.jpg,1\n"
        return [lfw, lfw.replace(b"\t", b" "), plain, b"300\r\nAnn 1 2\r\n"]

    def read(self) -> None:  # noqa: D102
        from lightning_pfc.evaluation import read_pairs

        read_pairs(self.path)


class Ijb:
    """The tables of IJB, and the lists of its galleries."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "fuzz"
        (self.root / "meta").mkdir(parents=True)
        points = "38 51 73 51 56 71 41 92 70 92"
        names = [f"{n}.jpg" for n in range(1, 5)]
        self.files = {
            "ijbb_face_tid_mid.txt": "".join(f"{name} {n} {n}\n" for n, name in enumerate(names, 1)),
            "ijbb_name_5pts_score.txt": "".join(f"{name} {points} 0.9\n" for name in names),
            "ijbb_template_pair_label.txt": "1 2 1\n1 3 0\n2 4 0\n3 4 1\n",
            "ijbb_1N_gallery_S1.csv": "TEMPLATE_ID,SUBJECT_ID\n1,1\n3,2\n",
        }

    def __call__(self, rng: random.Random) -> None:
        """Feeds one damaged input."""
        import torch

        from lightning_pfc.evaluation import ijb

        damaged = rng.choice(list(self.files))
        for name, text in self.files.items():
            (self.root / "meta" / name).write_bytes(mutate(text.encode(), rng) if name == damaged else text.encode())
        ijb.IJBImages(self.root, "ijbb", (3, 16, 16))
        torch.tensor(ijb.read_table(self.root / "meta" / "ijbb_template_pair_label.txt", ijb._three_numbers))
        ijb._subjects(self.root / "meta" / "ijbb_1N_gallery_S1.csv")


class Points(Single):
    """Tables of landmarks."""

    name = "fuzz.tsv"

    def make(self) -> Sequence[bytes]:  # noqa: D102
        line = "a/1.jpg\t2\t2\t9\t2\t5\t6\t3\t9\t8\t9\n"
        return [line.encode() * 2, line.replace("\t", ",").encode(), line.replace("\t", " ").encode()]

    def read(self) -> None:  # noqa: D102
        from lightning_pfc.data.curation.alignment import read_landmarks

        read_landmarks(self.path)


class Glyphs:
    """The cache of drawn characters."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "fuzz"
        self.folder.mkdir()
        np.save(self.folder / "images.npy", np.arange(2 * 64, dtype=np.uint8).reshape(2, 8, 8))
        np.savez(self.folder / "table.npz", codepoints=np.array([65, 66], np.uint32), designs=np.zeros(2, np.uint8))
        (self.folder / "info.json").write_text(json.dumps({"designs": ["a"], "heldout": [], "description": {}}))
        self.files = {name: (self.folder / name).read_bytes() for name in os.listdir(self.folder)}

    def __call__(self, rng: random.Random) -> None:
        """Feeds one damaged input."""
        from lightning_pfc.data.glyphs.store import _open
        from lightning_pfc.data.images import ArrayImages

        damaged = rng.choice(sorted(self.files))
        for name, data in self.files.items():
            (self.folder / name).write_bytes(mutate(data, rng) if name == damaged else data)
        store = _open(self.folder, "key")
        ArrayImages(store.images).fetch(np.arange(len(store.images)))


class Records:
    """The record of preprocessing that a checkpoint or a model carries."""

    def __init__(self, folder: Path) -> None:
        from lightning_pfc.data.preprocessing import Preprocessing

        plain = Preprocessing(size=(112, 96), fit="crop", flip="sum", mean=(1, 2, 3)).to_config()
        self.seed = json.dumps(plain).encode()

    def __call__(self, rng: random.Random) -> None:
        """Feeds one damaged input."""
        from lightning_pfc.data.preprocessing import Preprocessing

        try:
            plain = json.loads(mutate(self.seed, rng))
        except ValueError as error:
            raise FormatError("no JSON", path="fuzz") from error
        try:
            record = Preprocessing.from_config(plain)
        except ValueError as error:
            raise FormatError(str(error), path="fuzz") from error
        if record.size[0] > 1 << 10 or record.size[1] > 1 << 10:
            return
        record(np.zeros((5, 5, record.channels), np.uint8)) if record.fit != "exact" else None


TARGETS: dict[str, Callable[[Path], Feed]] = {
    "recordio": RecordIO,
    "list": Lists,
    "picture": Pictures,
    "webdataset": WebDataset,
    "parquet": Parquet,
    "arrow": Arrow,
    "saved": Saved,
    "array": Arrays,
    "bin": Bin,
    "pairs": Pairs,
    "ijb": Ijb,
    "points": Points,
    "glyphs": Glyphs,
    "record": Records,
}
