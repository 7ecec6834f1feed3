"""Feeds damaged verification files and lists of pairs to their readers; an audit hook watches that nothing is run.

    python recipes/evaluation/fuzz.py --count 100000          # for each reader, a few minutes
    python recipes/evaluation/fuzz.py bin --count 1000 --seed 7

A damaged file is a valid one of any dialect (pickle protocols 0 to 5, bytes, bytearrays, NumPy arrays, Python 2) with
instructions of pickle spliced in, bytes flipped, telling lengths written over others, pieces cut out, doubled or cut
off. What opens is read to its last image. Anything but a FormatError with the file's name fails the run, and so does an
import, an opened file other than the input, a started process, an input that takes a second, or a process that grows by
more than 256 MiB. The worst time and the growth of the memory are printed.
"""

from __future__ import annotations

import argparse
import codecs
import pickle
import random
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lightning_pfc.data.formats import FormatError
from lightning_pfc.protocols.bins import BinImages
from lightning_pfc.protocols.pairs import read_pairs

CODE = [
    b"cos\nsystem\n(S'true'\ntR",
    b"cbuiltins\neval\n(S'1'\ntR",
    b"c__builtin__\nopen\n(S'x'\nS'w'\ntR",
    b"\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R",
    b"(S'true'\nios\nsystem\n",
    b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(J\xff\xff\xff\x7ftS'b'\ntR",
    b"\x82\x01",
    b"\x81",
    b"\x92",
    b"Q",
    b"P1\n",
]
LENGTHS = [struct.pack("<I", n) for n in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)]
LENGTHS += [struct.pack("<Q", n) for n in (0, 1 << 31, 1 << 40, (1 << 64) - 1)]
STEPS = [
    bytes([code])
    for code in b"(.0123456789]}{)}NIJKLMRSTUVXabcdeghijlopqrstuBC\x80\x85\x86\x87\x88\x89\x8a\x8c\x8e\x93\x94\x95\x96"
]
FORBIDDEN = ("import", "open", "os.", "subprocess.", "exec", "compile", "pickle.", "socket.", "shutil.", "ctypes.")


def bin_corpus() -> list[bytes]:
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


def pairs_corpus() -> list[bytes]:
    lfw = b"2\t2\nAnn\t1\t12\nBob Lee\t3\tCid\t4\nAnn\t1\tBob Lee\t3\nCid\t4\t5\n"
    return [lfw, lfw.replace(b"\t", b" "), b"# c\na/1.jpg b/2.png 0\na/1.jpg,a/2.jpg,1\n", b"300\r\nAnn 1 2\r\n"]


def open_bin(path: Path) -> None:
    images = BinImages(path)
    for index in range(len(images)):
        images.read(index)
    images.pairs()


def open_pairs(path: Path) -> None:
    read_pairs(path)


TARGETS: dict[str, tuple[Callable[[], list[bytes]], Callable[[Path], None]]] = {
    "bin": (bin_corpus, open_bin),
    "pairs": (pairs_corpus, open_pairs),
}


def damage(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        place = rng.randrange(len(out) + 1)
        kind = rng.randrange(7)
        if kind == 0 and place < len(out):
            out[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and place < len(out):
            out[place] = rng.randrange(256)
        elif kind == 2:
            piece = rng.choice(LENGTHS)
            out[place : place + len(piece)] = piece
        elif kind == 3:
            out[place:place] = rng.choice(STEPS if rng.random() < 0.7 else CODE)
        elif kind == 4:
            del out[place : place + rng.choice((1, 2, 4, 9, 60))]
        elif kind == 5:
            piece = bytes(out[place : place + rng.choice((1, 3, 20, 200))])
            out[place:place] = piece * rng.choice((1, 1, 1, 50))
        else:
            del out[place:]
    return bytes(out)


class Watch:
    """An audit hook that remembers what a reader must not do; hooks cannot be taken off again, so it is switched."""

    def __init__(self) -> None:
        self.path: str | None = None
        self.seen: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note what is forbidden."""
        if self.path is None or not event.startswith(FORBIDDEN):
            return
        if event == "open" and str(arguments[0]) == self.path:
            return
        if event == "compile" and isinstance(arguments[0], bytes | str | type(None)):
            return  # ast.literal_eval of a quoted string builds a tree and runs nothing
        self.seen.append(f"{event} {str(arguments)[:80]}")


def fuzz(name: str, count: int, seed: int, watch: Watch) -> int:
    corpus, opened = TARGETS[name]
    seeds, rng = corpus(), random.Random(seed)
    before, worst, read, wrong = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input"
        for codec in ("raw-unicode-escape", "utf-8-sig", "latin-1", "ascii"):
            codecs.lookup(codec)  # Python imports its own codecs when they are first used
        for number in range(count):
            data = damage(rng.choice(seeds), rng)
            path.write_bytes(data)
            start, reason = time.perf_counter(), ""
            watch.path, watch.seen = str(path), []
            try:
                opened(path)
                read += 1
            except FormatError as error:
                reason = "" if str(path) in str(error) else f"an error without the file: {error}"
            except BaseException as error:
                reason = f"{type(error).__name__}: {error}"
            finally:
                watch.path = None
            taken = time.perf_counter() - start
            worst = max(worst, taken)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            reason = reason or (f"it did {watch.seen[0]}" if watch.seen else "")
            reason = reason or (f"it took {taken:.1f} s" if taken > 1 else "")
            reason = reason or (f"the process grew by {grown:.0f} MiB" if grown > 256 else "")
            if reason:
                wrong += 1
                print(f"{name}, seed {seed}, input {number}: {reason}\n  {data[:200]!r}", flush=True)
                if wrong == 10:
                    break
    print(f"{name}: {count} inputs, {read} read, {count - read - wrong} refused, {wrong} wrong; ", end="")
    print(f"worst {worst * 1e3:.1f} ms, memory +{grown:.0f} MiB", flush=True)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=[], help=f"of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--count", type=int, default=100_000, help="inputs for each reader")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    watch = Watch()
    for name in options.targets or TARGETS:
        if name not in TARGETS:
            parser.error(f"there is no reader {name}; choose from {', '.join(TARGETS)}")
    wrong = sum(fuzz(name, options.count, options.seed, watch) for name in options.targets or TARGETS)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
