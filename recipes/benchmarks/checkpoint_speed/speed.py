"""Times saving and loading of a sharded head with its momentum, beside torch.save of the same bytes and the bare disk.

python recipes/benchmarks/checkpoint_speed/speed.py --classes 2000000 --dim 512 --ranks 2 --folder /where/the/disk/is
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lightning_pfc.checkpoint import load_folder, save_folder
from lightning_pfc.checkpoint.manifest_entries import TensorEntry
from lightning_pfc.checkpoint.split_tree import ClassRows
from lightning_pfc.distributed import ClassShard, Comm

KEYS = ("state_dict/head.weight", "optimizer_states/0/state/0/momentum_buffer")


class Into:
    """Loads into the tensors that are there."""

    def __init__(self, tensors: dict[str, ClassRows]) -> None:
        self.tensors = tensors

    def __call__(self, key: str, stored: TensorEntry) -> ClassRows:
        """The tensor of that name."""
        return self.tensors[key]

    def wants(self, key: str) -> bool:
        """All of them."""
        return True


def anonymous() -> int:
    """Bytes of this process that are not a cache of some file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def watched(function: Callable[[], Any]) -> tuple[float, int]:
    """Seconds that a call took, and by how many bytes the process grew meanwhile at most."""
    before = anonymous()
    highest = before
    stop = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not stop.wait(0.01):
            highest = max(highest, anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    function()
    seconds = time.perf_counter() - start
    stop.set()
    thread.join()
    return seconds, highest - before


def forget(folder: Path) -> None:
    """Ask the system to drop its copy of the files, so that loading really reads."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def rank_main(rank: int, options: argparse.Namespace, folder: Path, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=options.ranks)
    comm = Comm.from_group() if options.ranks > 1 else Comm.single()
    shard = ClassShard(options.classes, rank, options.ranks)
    tensors = {
        key: ClassRows(torch.full((shard.num_local, options.dim), float(i + 1)), shard) for i, key in enumerate(KEYS)
    }
    marks = {key: {"__pfc_tensor__": key} for key in KEYS}
    target = folder / "a.ckpt"
    save = watched(lambda: save_folder(target, marks, tensors, comm, {}))
    dist.barrier()
    if rank == 0:
        os.sync()
        forget(target)
    dist.barrier()
    load = watched(lambda: load_folder(target, comm, Into(tensors)))
    good = all(bool((rows.tensor == float(i + 1)).all()) for i, rows in enumerate(tensors.values()))
    answers.put((rank, save, load, good, sum(rows.tensor.nbytes for rows in tensors.values())))
    dist.barrier()
    if rank == 0:
        shutil.rmtree(target)
    if options.ranks > 1:
        dist.barrier()
    plain = folder / f"plain-{rank}.pt"

    def save_plain() -> None:
        with open(plain, "wb") as file:
            torch.save({key: rows.tensor for key, rows in tensors.items()}, file)
            file.flush()
            os.fsync(file.fileno())

    answers.put((rank, watched(save_plain)))
    dist.barrier()
    if rank == 0:
        os.sync()
        forget(folder)
    dist.barrier()
    tensors.clear()
    answers.put((rank, watched(lambda: torch.load(plain, weights_only=True))))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=2_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder, prefix="speed-"))
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    try:
        processes = [
            context.Process(target=rank_main, args=(r, options, folder, answers)) for r in range(options.ranks)
        ]
        for process in processes:
            process.start()
        found = [answers.get() for _ in range(3 * options.ranks)]
        for process in processes:
            process.join()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    ours = [answer for answer in found if len(answer) == 5]
    plain: dict[int, list[Any]] = {}
    for answer in found:
        if len(answer) == 2:
            plain.setdefault(answer[0], []).append(answer[1])
    total = sum(answer[4] for answer in ours)
    assert all(answer[3] for answer in ours)
    print(
        f"{options.classes} x {options.dim} float32 and its momentum on {options.ranks} ranks: {total / 2**30:.2f} GiB"
    )

    def line(name: str, seconds: float, extra: float) -> None:
        print(f"{name:28s} {seconds:7.1f} s  {total / seconds / 2**30:5.2f} GiB/s  extra {100 * extra / total:5.1f} %")

    line("save (checksums, fsync)", max(a[1][0] for a in ours), sum(a[1][1] for a in ours))
    line("load (checksums)", max(a[2][0] for a in ours), sum(a[2][1] for a in ours))
    line("torch.save + fsync", max(p[0][0] for p in plain.values()), sum(p[0][1] for p in plain.values()))
    line("torch.load", max(p[1][0] for p in plain.values()), sum(p[1][1] for p in plain.values()))


if __name__ == "__main__":
    main()
