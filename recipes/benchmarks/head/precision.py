"""A training step of the head in each precision, in one process, interleaved, beside plain products and nn.Linear.

Every round runs each contestant once; what is printed is the median of the rounds, and the median of the rounds' ratios
to the three products of a step (scores, gradient of the embeddings, gradient of the centers) in float32 without a head.
With --beside N the rounds are run again while N other processes compute, and each contestant's slowdown is printed.

Usage: python recipes/benchmarks/head/precision.py [--classes 100000] [--batch 256] [--rate 1] [--rounds 7] [--beside 1]
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import nn

from lightning_pfc import PartialFC
from lightning_pfc.losses import ArcFace
from lightning_pfc.matmul.cpu import fast_fp32_matmul
from lightning_pfc.optim import SparseSGD

SGD: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


def head_step(args: argparse.Namespace, precision: str) -> Callable[[], object]:
    """One step of a head: forward, backward, optimizer."""
    head = PartialFC(
        embedding_dim=args.dim,
        num_classes=args.classes,
        loss=ArcFace(),
        sample_rate=args.rate,
        precision=precision,
        memory_budget=args.memory_budget,
    ).to("cpu")
    optimizer = SparseSGD(head.parameters(), **SGD)

    def step() -> None:
        head(
            torch.randn(args.batch, args.dim).requires_grad_(), torch.randint(0, args.classes, (args.batch,))
        ).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def linear_step(args: argparse.Namespace) -> Callable[[], object]:
    """One step of nn.Linear and cross entropy with torch.optim.SGD, over all classes."""
    layer = nn.Linear(args.dim, args.classes, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), **SGD)

    def step() -> None:
        x = torch.randn(args.batch, args.dim, requires_grad=True)
        nn.functional.cross_entropy(layer(x), torch.randint(0, args.classes, (args.batch,))).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def products(args: argparse.Namespace, dtype: torch.dtype) -> Callable[[], object]:
    """The three products of a step and nothing else."""
    rows = max(1, round(args.rate * args.classes))
    x, w = torch.randn(args.batch, args.dim).to(dtype), torch.randn(rows, args.dim).to(dtype)
    scores, x_grad, w_grad = x.new_empty(args.batch, rows), torch.empty_like(x), torch.empty_like(w)

    def step() -> None:
        with fast_fp32_matmul():
            torch.mm(x, w.t(), out=scores)
            torch.mm(scores, w, out=x_grad)
            torch.mm(scores.t(), x, out=w_grad)

    return step


def run_rounds(contestants: dict[str, Callable[[], object]], warm_up: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every contestant in every round after the warm-up."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for round_number in range(warm_up + rounds):
        for name, step in contestants.items():
            start = time.perf_counter()
            step()
            if round_number >= warm_up:
                times[name].append(time.perf_counter() - start)
    return times


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Others that use a core each, as workers that load data do."""
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_compute, daemon=True) for _ in range(number)]
    for other in others:
        other.start()
    try:
        time.sleep(1)  # they are there
        yield
    finally:
        for other in others:
            other.kill()


def _compute() -> None:
    while True:
        sum(range(10_000))


def main() -> None:
    """Time all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--classes", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warm-up", type=int, default=2, help="rounds before the timing; 40 where rows are drawn")
    parser.add_argument("--memory-budget", default=None, help="lean or fast; default: by the device")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precisions", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--beside", type=int, default=0, metavar="N", help="once more beside N processes that compute")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    contestants = {"three products, float32": products(args, torch.float32)}
    contestants["three products, bfloat16"] = products(args, torch.bfloat16)
    contestants |= {f"head, {word}": head_step(args, word) for word in args.precisions}
    contestants["nn.Linear + cross entropy"] = linear_step(args)
    times = run_rounds(contestants, args.warm_up, args.rounds)
    with busy_processes(args.beside):
        beside = run_rounds(contestants, 1, args.rounds) if args.beside else {}
    bare = times["three products, float32"]
    print(f"C={args.classes} D={args.dim} B={args.batch} rate={args.rate} threads={args.threads}")
    for name, own in times.items():
        ratio = median(mine / products_time for mine, products_time in zip(own, bare, strict=True))
        slower = f"  {median(beside[name]) / median(own):5.2f} times as long beside others" if beside else ""
        print(f"{name:26s} {1e3 * median(own):8.1f} ms  {ratio:6.2f} of three products{slower}")


if __name__ == "__main__":
    main()
