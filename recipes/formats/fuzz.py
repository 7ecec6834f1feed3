"""Feeds damaged files to the readers: none may crash, hang, fill the memory, or raise anything but a FormatError.

    python recipes/formats/fuzz.py --count 100000              # 100,000 inputs for each reader, a few minutes
    python recipes/formats/fuzz.py recordio --count 1000 --seed 7

A damaged file is a small valid one with bytes flipped, overwritten with telling values, cut out, doubled or cut off. An
input that opens is read to its last image. Exit status 0 if every input was read or refused properly; the worst time
and the growth of the memory are printed.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import resource
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from lightning_pfc.data.formats import FormatError, ListImages, ParquetImages, RecordIOImages, WebDatasetImages, decode
from lightning_pfc.data.formats.recordio_writer import RecordWriter, pack_image, pack_range

TELLING = [struct.pack("<I", value) for value in (0, 1, 2, 0x7FFFFFFF, 0xFFFFFFFF, 0xCED7230A, 0x20000000, 0x60000010)]
TELLING += [
    b"\xff\xff",
    b"\0",
    b"\xff\xd8",
    b"\xff\xd9",
    b"\xff\xc0",
    b"\xff\xc2",
    b"IHDR",
    b"IDAT",
    b"\n",
    b"\t",
    b'"',
]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four kinds of damage."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(out) + 1) if rng.random() < 0.7 else rng.randrange(min(len(out), 64) + 1)
        kind = rng.randrange(6)
        if kind == 0 and place < len(out):
            out[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and place < len(out):
            out[place] = rng.randrange(256)
        elif kind == 2:
            telling = rng.choice(TELLING)
            out[place : place + len(telling)] = telling
        elif kind == 3:
            del out[place : place + rng.randrange(1, 40)]
        elif kind == 4:
            out[place:place] = out[max(0, place - rng.randrange(1, 40)) : place]
        elif rng.random() < 0.3:
            del out[place:]
    return bytes(out)


def picture(kind: str, size: int = 24, **options: object) -> bytes:
    """A small picture with something to see."""
    smooth = Image.fromarray(np.random.default_rng(1).integers(0, 256, (5, 5, 3), np.uint8))
    out = io.BytesIO()
    smooth.resize((size, size), Image.Resampling.BICUBIC).save(out, kind, **options)
    return out.getvalue()


class RecordIO:
    """A headered and a flat file, one with parts; the .rec, the .idx or both are damaged."""

    def __init__(self, folder: Path) -> None:
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
        rec, idx = rng.choice(self.seeds)
        which = rng.randrange(3)
        self.path.write_bytes(mutate(rec, rng) if which != 1 else rec)
        index = self.path.with_suffix(".idx")
        if rng.random() < 0.1:
            index.unlink(missing_ok=True)
        else:
            index.write_bytes(mutate(idx, rng) if which else idx)
        data = RecordIOImages(self.path)
        for place in range(len(data)):
            if not data.read(place):
                raise AssertionError("an image without a byte")


class List:
    """TSV, CSV, LST and plain lists."""

    seeds = (
        (".tsv", "path\tlabel\na/1.jpg\tann\nb/2.jpg\tbob\n" * 2),
        (".tsv", "a/1.jpg\t0\nb/2.jpg\t1\nc/ü.jpg\t2\n"),
        (".csv", '"a/1.jpg",0\n"b ""2"".jpg",1\n'),
        (".lst", "0\t0.000000\ta/1.jpg\n1\t1.000000\t0.5\tb/2.jpg\n"),
        (".txt", "# comment\na/1.jpg 0\n\nb 2.jpg 1\n"),
    )

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, rng: random.Random) -> None:
        """Feeds one damaged input."""
        suffix, text = rng.choice(self.seeds)
        path = self.folder / f"fuzz{suffix}"
        path.write_bytes(mutate(text.encode(), rng))
        data = ListImages(path)
        for place in range(len(data)):
            data.locate(place)
            try:
                data.read(place)
            except FormatError as error:  # the images are not there
                if str(path) not in str(error):
                    raise AssertionError(f"the list is not named: {error}") from error


class Decoder:
    """JPEG (baseline, progressive, grey), PNG, WebP, BMP and GIF."""

    def __init__(self, folder: Path) -> None:
        self.seeds = [
            picture("JPEG"),
            picture("JPEG", quality=95, subsampling=0),
            picture("JPEG", progressive=True),
            picture("PNG"),
            picture("WEBP"),
            picture("BMP", size=12),
            picture("GIF"),
        ]

    def __call__(self, rng: random.Random) -> None:
        """Feeds one damaged input."""
        # Four of five are JPEG, as data sets are.
        seed = rng.choice(self.seeds[:3]) if rng.random() < 0.8 else rng.choice(self.seeds)
        channels = rng.choice((1, 3))
        batch = np.zeros((3, 24, 24, channels), np.uint8)  # of the size of most seeds
        try:
            image = decode(mutate(seed, rng), where="fuzz.rec, byte 40", channels=channels, out=batch[1])
        finally:
            if batch[::2].any():
                raise AssertionError("decoded beyond the room that was given")
        if image.dtype != np.uint8 or image.ndim != 3 or not image.size:
            raise AssertionError(f"decoded to {image.dtype} of shape {image.shape}")


class WebDataset:
    """A tar with labels in .cls and .json."""

    def __init__(self, folder: Path) -> None:
        import tarfile

        self.path = folder / "fuzz.tar"
        with tarfile.open(self.path, "w", format=tarfile.USTAR_FORMAT) as archive:
            for number in range(3):
                label = ("cls", b"1") if number else ("json", b'{"label": 3}')
                for ending, data in (("jpg", b"image" * 9), label):
                    member = tarfile.TarInfo(f"{number}.{ending}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
        self.seed = self.path.read_bytes()[: 13 * 512]

    def __call__(self, rng: random.Random) -> None:
        """Feeds one damaged input."""
        self.path.write_bytes(mutate(self.seed, rng))
        data = WebDatasetImages(self.path)
        for place in range(len(data)):
            data.read(place)


class Parquet:
    """Parquet files; their parser is pyarrow's."""

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = folder / "fuzz.parquet"
        pq.write_table(pa.table({"image": [b"image"] * 6, "label": [0, 0, 1, 1, 2, 2]}), self.path, row_group_size=2)
        self.seed = self.path.read_bytes()

    def __call__(self, rng: random.Random) -> None:
        """Feeds one damaged input."""
        self.path.write_bytes(mutate(self.seed, rng))
        data = ParquetImages(self.path)
        for place in range(len(data)):
            data.read(place)


TARGETS: dict[str, Callable[[Path], Callable[[random.Random], None]]] = {
    "recordio": RecordIO,
    "list": List,
    "image": Decoder,
    "webdataset": WebDataset,
    "parquet": Parquet,
}
DEFAULT = ("recordio", "list", "image", "webdataset")


def fuzz(target: str, count: int, seed: int = 0, *, slowest: float = 5.0) -> dict[str, float]:
    """Feeds ``count`` inputs to a reader.

    Returns:
        How many were read and how many refused, the slowest in seconds, and the growth of the memory in MiB.

    Raises:
        AssertionError: an input made the reader raise something else, name no file, or take ``slowest`` seconds.
    """
    read = refused = 0
    worst = 0.0
    # In memory where there is such a folder: the disk is not what is tested.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        run = TARGETS[target](Path(folder))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(count):
            rng = random.Random(f"{seed}/{target}/{number}")
            start = time.perf_counter()
            try:
                run(rng)
                read += 1
            except FormatError as error:
                refused += 1
                if "fuzz." not in str(error):
                    raise AssertionError(f"input {number}: the error names no file: {error}") from error
            except Exception as error:
                raise AssertionError(f"input {number} of seed {seed} raised {type(error).__name__}: {error}") from error
            took = time.perf_counter() - start
            worst = max(worst, took)
            if took > slowest:
                raise AssertionError(f"input {number} of seed {seed} took {took:.1f} s")
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"read": read, "refused": refused, "slowest": worst, "growth": growth}


def main() -> int:
    """Runs the targets that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; by default {DEFAULT}")
    parser.add_argument("--count", type=int, default=100_000, help="inputs for each (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"unknown targets {sorted(unknown)}; there are {', '.join(TARGETS)}")
    # A reader that fills the memory dies here and not with the machine.
    limit = 4 << 30
    warnings.simplefilter("ignore")  # Pillow warns of large images before they are refused
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    for target in options.targets or DEFAULT:
        start = time.perf_counter()
        result = fuzz(target, options.count, options.seed)
        print(
            f"{target:<12}{options.count:>9} inputs: {result['read']:.0f} read, {result['refused']:.0f} refused, "
            f"slowest {result['slowest'] * 1000:.0f} ms, memory +{result['growth']:.0f} MiB, "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
