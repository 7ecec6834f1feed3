"""What the callbacks for clusters cost.

    python recipes/slurm/costs.py --backbone resnet50 --ranks 2

Prints milliseconds per check of the replicas, its two parts, one message of the control channel (which carries the
number of a signal as well), and one note of the watchdog.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist

from lightning_pfc.callbacks.replicas import bit_sum
from lightning_pfc.distributed import Comm
from lightning_pfc.distributed.heartbeat import Pulse


def timed(function: Callable[[], Any], repeats: int) -> float:
    """Median milliseconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1000 * sorted(times)[len(times) // 2]


def rank_main(rank: int, options: argparse.Namespace, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=options.ranks)
    comm = Comm.from_group()
    device = torch.device(options.device)
    parameters = list(timm.create_model(options.backbone).to(device).parameters())

    def sums() -> int:
        return int(torch.stack([bit_sum(parameter) for parameter in parameters]).sum())

    def message() -> None:
        comm.agreement.exchange("costs", [1, 2])

    pulse = Pulse()
    parts = timed(sums, 20), timed(message, 200), timed(lambda: pulse.mark((1, 2), f"batch {rank}"), 2000)
    if rank == 0:
        size = sum(parameter.numel() * parameter.element_size() for parameter in parameters) / 2**20
        print(f"{options.backbone}: {size:.0f} MiB of parameters on {device}, {options.ranks} ranks")
        print(f"sums of all parameters  {parts[0]:8.3f} ms")
        print(f"one message             {parts[1]:8.3f} ms")
        print(f"a check of replicas     {parts[0] + parts[1]:8.3f} ms")
        print(f"a note of the watchdog  {parts[2]:8.5f} ms")
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50", help="a name of timm")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=rank_main, args=(r, options, Path(folder))) for r in range(options.ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()


if __name__ == "__main__":
    main()
