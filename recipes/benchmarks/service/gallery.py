"""How fast and how large a gallery is: enrolling in bulk, opening, searching, enrolling and deleting one by one.

python recipes/benchmarks/service/gallery.py --vectors 100000 --folder /disk/gallery
python recipes/benchmarks/service/gallery.py --vectors 100000 --postgres postgresql://USER@HOST/DATABASE

Vectors are random, two of each identity, and each query has a cosine of 0.5 with one of them. Recall is of the ten
nearest identities that numpy finds in float32 among all vectors. Each part runs in a process of its own, so that its
peak of memory is its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_pfc.gallery import Gallery, ModelRecord, NewPicture
from lightning_pfc.gallery.addresses import create_gallery, open_gallery

_BLOCK = 4096


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="where the gallery is made (default: a temporary folder)")
    parser.add_argument("--postgres", help="address of a database to use instead of SQLite")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        address = options.postgres or str(Path(folder) / "gallery")
        found: dict[str, Any] = {"vectors": options.vectors, "width": options.width}
        for part in (_build, _search, _change):
            found |= _apart(part, address, options.vectors, options.width, options.queries)
        shutil.rmtree(folder, ignore_errors=True)
        Path(folder).mkdir()
    print(json.dumps(found, indent=2))
    return 0


def _apart(part: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(part, arguments)


def _blocks(count: int, width: int) -> Iterator[np.ndarray]:
    for start in range(0, count, _BLOCK):
        rng = np.random.default_rng(start)
        rows = rng.standard_normal((min(_BLOCK, count - start), width), dtype=np.float32)
        yield rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _peak() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _build(address: str, count: int, width: int, queries: int) -> dict[str, Any]:
    model = ModelRecord("0" * 64, width, "")
    number = iter(range(count))
    rows = (row for block in _blocks(count, width) for row in block)
    with create_gallery(address, model) as gallery:
        before, begun = _peak(), time.perf_counter()
        gallery.extend((f"n{next(number) // 2:08d}", NewPicture(row)) for row in rows)
        took = time.perf_counter() - begun
        size = gallery.info().bytes_on_disk
    return {
        "build, vectors a second": round(count / took),
        "build, peak above the start, MB": round(_peak() - before),
        "on disk, bytes a vector": round(size / count),
    }


def _search(address: str, count: int, width: int, queries: int) -> dict[str, Any]:
    before, begun = _peak(), time.perf_counter()
    with open_gallery(address) as gallery:
        gallery.warm_up()
        opened, peak = time.perf_counter() - begun, _peak()
        asked = _queries(count, width, queries)
        times, found = [], []
        for query in asked:
            begun = time.perf_counter()
            found.append([match.identity for match in gallery.search(query, 10)])
            times.append(1e3 * (time.perf_counter() - begun))
    wanted = _nearest(asked, count, width)
    hits = sum(len(set(a) & set(b)) for a, b in zip(found, wanted, strict=True))
    return {
        "opening, seconds": round(opened, 2),
        "opened, peak above the start, MB": round(peak - before),
        "search, ms, median": round(statistics.median(times), 2),
        "search, ms, 99th": round(float(np.percentile(times, 99)), 2),
        "recall@10": hits / (10 * queries),
    }


def _queries(count: int, width: int, queries: int) -> np.ndarray:
    rng = np.random.default_rng(12345)
    block = next(_blocks(count, width))
    chosen = block[rng.integers(0, len(block), queries)]
    noise = rng.standard_normal(chosen.shape).astype(np.float32)
    noise -= (noise * chosen).sum(1, keepdims=True) * chosen
    return 0.5 * chosen + 0.75**0.5 * noise / np.linalg.norm(noise, axis=1, keepdims=True)


def _nearest(asked: np.ndarray, count: int, width: int) -> list[list[str]]:
    """The ten identities with the highest cosine, by brute force."""
    best = np.full((len(asked), -(-count // 2)), -2.0, dtype=np.float32)
    start = 0
    for block in _blocks(count, width):
        scores = asked @ block.T
        for i in range(scores.shape[1]):
            identity = (start + i) // 2
            np.maximum(best[:, identity], scores[:, i], out=best[:, identity])
        start += len(block)
    return [[f"n{i:08d}" for i in np.argsort(-row)[:10]] for row in best]


def _change(address: str, count: int, width: int, queries: int) -> dict[str, Any]:
    rng = np.random.default_rng(99)
    with open_gallery(address) as gallery:
        gallery.warm_up()
        enrol = _each(
            gallery, queries, lambda i: gallery.enrol(f"new{i}", [NewPicture(rng.standard_normal(width, np.float32))])
        )
        remove = _each(gallery, queries, lambda i: gallery.remove(f"new{i}"))
    return {"enrol, ms, median": enrol, "delete, ms, median": remove}


def _each(gallery: Gallery, count: int, work: Callable[[int], Any]) -> float:
    times = []
    for i in range(count):
        begun = time.perf_counter()
        work(i)
        times.append(1e3 * (time.perf_counter() - begun))
    return round(statistics.median(times), 2)


if __name__ == "__main__":
    sys.exit(main())
