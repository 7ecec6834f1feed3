"""The speeds of the machine that a plan is made on, timed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median

import torch

from lightning_pfc.matmul.cpu import fast_fp32_matmul
from lightning_pfc.matmul.in_precision import has_fast_bfloat16
from lightning_pfc.planning.machine import Machine


def this_machine() -> Machine:
    """This machine's CPU, timed for a second: one process that uses all its threads."""
    a, b = torch.randn(256, 512), torch.randn(4096, 512)
    out = torch.empty(256, 4096)
    with fast_fp32_matmul():  # as in the head
        flops = 2 * a.shape[0] * b.shape[0] * b.shape[1] / _seconds(lambda: torch.mm(a, b.t(), out=out))
    half = flops
    if has_fast_bfloat16():
        a, b, out = a.bfloat16(), b.bfloat16(), out.bfloat16()
        half = 2 * a.shape[0] * b.shape[0] * b.shape[1] / _seconds(lambda: torch.mm(a, b.t(), out=out))
    source = torch.zeros(8 << 20)
    target = torch.empty_like(source)
    bandwidth = 2 * source.numel() * 4 / _seconds(lambda: target.copy_(source))
    try:
        memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        memory = 16e9
    return Machine(
        name="this-cpu",
        memory=memory,
        flops=flops,
        tf32_flops=flops,
        half_flops=half,
        backbone_flops=flops,
        bandwidth=bandwidth,
        link=1e9,
        network=1e8,
        latency=200e-6,
        bus=bandwidth,
        host_bandwidth=bandwidth,
    )


def _seconds(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(15):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)
