"""Run as a program: the memory that steps of a head really take, for the setups on standard input, as JSON."""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import torch

from lightning_pfc import PartialFC
from lightning_pfc.buffers.scratch import release_scratch
from lightning_pfc.losses import ArcFace
from lightning_pfc.optim import RowWiseAdagrad, SparseAdamW, SparseSGD
from lightning_pfc.planning import Setup


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def release_all() -> None:
    """Give back what was freed: glibc keeps pages, more or fewer from run to run."""
    gc.collect()
    release_scratch()
    ctypes.CDLL(None).malloc_trim(0)


def make_optimizer(setup: Setup, parameters):
    if setup.optimizer == "torch-sgd":
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)
    if setup.optimizer == "torch-adamw":
        return torch.optim.AdamW(parameters, lr=0.1)
    options: dict[str, Any] = {"lr": 0.1, "update_in_backward": setup.update_in_backward}
    if setup.optimizer == "adagrad":
        return RowWiseAdagrad(parameters, **options)
    options["state_dtype"] = setup.state_dtype
    if setup.optimizer == "adamw":
        return SparseAdamW(parameters, **options)
    return SparseSGD(parameters, momentum=0.9, weight_decay=1e-4, **options)


def peak(setup: Setup, steps: int) -> int:
    """Bytes at the highest, above those before the head was made, with the state of every row committed."""
    release_all()
    baseline = status("VmRSS")
    head = PartialFC(
        embedding_dim=setup.dim, num_classes=setup.classes, loss=ArcFace(), sample_rate=setup.rate,
        dtype=getattr(torch, setup.dtype), memory_budget=setup.memory_budget,
        precision=setup.precision,
    ).to("cpu")  # fmt: skip
    optimizer = make_optimizer(setup, head.parameters())
    if not setup.is_dense:
        optimizer.allocate_state()
        for state in optimizer.state.values():
            for value in state.values():
                value.fill_(0)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(steps):
        x = torch.randn(setup.batch, setup.dim, requires_grad=True)
        head(x, torch.randint(0, setup.classes, (setup.batch,))).backward()
        optimizer.step()
        optimizer.zero_grad()
    return status("VmHWM") - baseline


def measured(one: dict[str, Any], threads: int) -> int:
    """In a process of its own, forked from one that has computed nothing: what a setup before left is not there."""
    torch.set_num_threads(threads)
    peak(Setup(**{**one, "classes": 4000}), 2)  # what is taken once, for good: code, and the library's own memory
    return peak(Setup(**one), 3)


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        print(json.dumps(pool.starmap(measured, [(one, number) for one in json.load(sys.stdin)], chunksize=1)))
