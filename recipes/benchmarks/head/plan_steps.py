"""A step of the head beside its plan, in processor time of one thread: what else the machine does hardly counts.

    python recipes/benchmarks/head/plan_steps.py

The speeds of the machine are taken in processor time, too. Each figure is the best of several steps.
"""

from __future__ import annotations

import time
from unittest import mock

import torch

from lightning_pfc import PartialFC
from lightning_pfc.losses import ArcFace
from lightning_pfc.optim import SparseSGD
from lightning_pfc.planning import Setup, head_seconds, this_machine, timed_machine

# classes, width, batch, rate
SETUPS = [
    (20_000, 512, 128, 1.0), (20_000, 512, 128, 0.3), (20_000, 512, 128, 0.1), (100_000, 512, 128, 1.0),
    (100_000, 512, 128, 0.1), (200_000, 128, 128, 0.5), (300_000, 256, 64, 0.1), (1_000_000, 128, 128, 0.1),
]  # fmt: skip


def step_seconds(setup: Setup, steps: int = 7) -> float:
    """Processor time of forward, backward and update."""
    head = PartialFC(embedding_dim=setup.dim, num_classes=setup.classes, loss=ArcFace(), sample_rate=setup.rate).to(
        "cpu"
    )
    optimizer = SparseSGD(head.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    optimizer.allocate_state()
    times = []
    for _ in range(steps + 2):
        x = torch.randn(setup.batch, setup.dim, requires_grad=True)
        labels = torch.randint(0, setup.classes, (setup.batch,))
        start = time.process_time()
        head(x, labels).backward()
        optimizer.step()
        times.append(time.process_time() - start)
        optimizer.zero_grad()
    return min(times[2:])


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    in_processor_time = mock.patch.object(time, "perf_counter", time.process_time)
    with in_processor_time, mock.patch.object(timed_machine, "median", min):
        machine = this_machine()
    print("| classes | D | batch | rate | step, ms | planned | ratio |")
    for classes, dim, batch, rate in SETUPS:
        setup = Setup(classes=classes, dim=dim, batch=batch, rate=rate, device="cpu")
        taken, planned = step_seconds(setup), sum(head_seconds(setup, machine).values())
        cells = f"{classes:,} | {dim} | {batch} | {rate:g} | {taken * 1e3:.1f} | {planned * 1e3:.1f}"
        print(f"| {cells} | {planned / taken:.2f} |", flush=True)


if __name__ == "__main__":
    main()
