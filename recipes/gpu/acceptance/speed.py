"""Tests 0, 8, 10, 11 and 12: how fast, in how much memory, with how many classes."""

from __future__ import annotations

import functools
import time
import warnings

import torch

from acceptance.bench import GB, Bench
from lightning_pfc import PartialFC
from lightning_pfc.kernels.choice import choose
from lightning_pfc.kernels.library import OPERATIONS
from lightning_pfc.optim import RowWiseAdagrad
from lightning_pfc.planning import Setup, head_memory

KEPT = 20 << 30
"""Bytes of exponentials that test 8 may keep: all of 10^6 classes and a batch of 8,192, and room to work."""


def ceilings(bench: Bench) -> None:
    """What the device can do at best; random data, since zeros are multiplied faster."""
    size = bench.size(8192, 256)
    for name, dtype in (("bf16_tflops", torch.bfloat16), ("tf32_tflops", torch.float32)):
        bench.tell(**{name: _product(bench, (size, size, size), dtype)})
    chunk = (bench.size(1024, 64), bench.size(512, 64), bench.size(16384, 256))
    bench.tell(chunk_tflops=_product(bench, chunk, torch.bfloat16))
    source = torch.empty(bench.size(1 << 30, 1 << 20), device=bench.device)
    out = torch.empty_like(source)
    bench.tell(copy_tb_s=2 * 4 * source.numel() / bench.milliseconds(lambda: out.copy_(source)) * 1e-9)
    _kernels_left_out(bench, bench.device)
    if bench.device.type == "cuda":
        bench.note(f"{torch.cuda.get_device_name(bench.device)}, torch {torch.__version__}, CUDA {torch.version.cuda}")


def _kernels_left_out(bench: Bench, device: torch.device) -> None:
    """Which kernels plain torch does the work of, and why; on a CPU of none."""
    if device.type != "cuda":
        bench.tell(kernels_left_out=0)
        return
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        chosen = choose("auto", device)
    bench.tell(kernels_left_out=len(OPERATIONS.keys() - chosen.names))
    for said in (chosen, *(warning.message for warning in seen)):
        bench.note(str(said))


def _product(bench: Bench, shape: tuple[int, int, int], dtype: torch.dtype) -> float:
    rows, inner, columns = shape
    if bench.fake:
        a, b = (torch.empty(s, dtype=dtype, device=bench.device) for s in ((rows, inner), (inner, columns)))
    else:
        a, b = (torch.randn(s, device=bench.device).to(dtype) for s in ((rows, inner), (inner, columns)))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return 2 * rows * inner * columns / bench.milliseconds(lambda: a @ b) * 1e-9
    finally:
        torch.set_float32_matmul_precision(before)


def step_times(bench: Bench) -> None:
    """The whole step, draw and optimizer included, as a graph and one by one; three sets of inputs taking turns.

    Between the steps of a training there is a backbone, so that the host is ahead: the graph's time is that of the head
    there, and it is what is judged. One by one it is what a head alone takes, Python included.
    """
    sizes = {"num_classes": bench.size(1_000_000, 20_000, predicts=True), "embedding_dim": _dim(bench)}
    for rate in (1.0, 0.1):
        head = bench.head(**sizes, sample_rate=rate, precision="bfloat16", memory_budget=KEPT)
        optimizer = bench.sgd(head, update_in_backward=True, capturable=True)
        for rows in (1024, 2048, 4096, 8192):
            inputs = [bench.batch(head, _rows(bench, rows), seed, torch.bfloat16) for seed in range(3)]
            figure = step_figure(rate, rows)
            if not bench.fake:
                bench.tell(**{f"eager_{figure}": bench.milliseconds(bench.in_turns(head, optimizer, inputs))})
            step = bench.replayed(head, optimizer, inputs)
            bench.tell(**{figure: bench.milliseconds(step, graph=True)})


def _rows(bench: Bench, rows: int) -> int:
    return rows // bench.size(1, 32, predicts=True)


def _dim(bench: Bench) -> int:
    return bench.size(512, 64, predicts=True)


def step_figure(rate: float, rows: int) -> str:
    """The name of a step's milliseconds."""
    return f"ms_r{rate:g}_B{rows}"


def memory(bench: Bench) -> None:
    """What a step needs above rows and momentum, and how far the plan is off."""
    classes, budget = bench.size(1_000_000, 20_000, predicts=True), 128 << 20
    for rows in (1024, 8192):
        head = bench.head(num_classes=classes, embedding_dim=_dim(bench), precision="bfloat16", memory_budget=budget)
        optimizer = bench.sgd(head, update_in_backward=True)
        x, labels = bench.batch(head, _rows(bench, rows), dtype=torch.bfloat16)
        bench.step(head, optimizer, x, labels)
        above = bench.peak_memory(functools.partial(bench.step, head, optimizer, x, labels))
        setup = Setup(
            classes=classes, dim=head.embedding_dim, batch=x.shape[0], memory_budget=budget, update_in_backward=True,
            embedding_dtype="bfloat16", kernels=True,
        )  # fmt: skip
        there = above + 2 * 4 * classes * head.embedding_dim
        bench.tell(**{f"gb_B{rows}": above / GB, f"plan_B{rows}": abs(head_memory(setup).peak - there) / there})


def many_classes(bench: Bench) -> None:
    """10^8 rows in bfloat16 with one number of state each, and 3 * 10^7 in float32 with momentum: a step of each."""
    bench.needs_memory(135 if not bench.small else 0)
    usual = {"sample_rate": 0.01, "precision": "bfloat16"}
    big = bench.head(num_classes=bench.size(100_000_000, 100_000), dtype="bfloat16", init="unit", **usual)
    _timed_step(bench, "ms_1e8", big, RowWiseAdagrad(big.parameters(), lr=0.1, update_in_backward=True))
    del big
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    big = bench.head(num_classes=bench.size(30_000_000, 30_000), **usual)
    _timed_step(bench, "ms_3e7", big, bench.sgd(big, update_in_backward=True))


def _timed_step(bench: Bench, name: str, head: PartialFC, optimizer: torch.optim.Optimizer) -> None:
    batch = bench.batch(head, bench.size(1024, 32), dtype=torch.bfloat16)
    bench.tell(**{name: bench.milliseconds(bench.in_turns(head, optimizer, [batch]), 5, 2)})


def rows_on_host(bench: Bench) -> None:
    """Centers in the host's memory: as fast as the bus allows, and with the numbers of a head that has them here."""
    options = {"num_classes": bench.size(10_000_000, 20_000), "sample_rate": 0.01, "seed": 3}
    here = bench.head(**options)
    there = here if bench.fake else bench.head(**options, rows_on="host")
    x, labels = bench.batch(here, bench.size(1024, 32))
    losses = []
    for head in (here, there):
        optimizer = bench.sgd(head)
        found = [bench.step(head, optimizer, x, labels)]
        for _ in range(2):  # of the host: fetched by a thread, and copied on a stream of their own
            head.prepare(labels)
            found.append(bench.step(head, optimizer, x, labels))
        losses.append([bench.number(loss) for loss in found])
        bench.milliseconds(lambda h=head, o=optimizer: bench.step(h, o, x, labels), 5, 2)  # type: ignore[misc]
    bench.tell(difference=max(abs(a - b) / abs(b) for a, b in zip(*losses, strict=True)))
    rows = 0.01 * here.num_classes
    seconds = bench.milliseconds(lambda: bench.step(there, None, x, labels), 5, 2) * 1e-3
    bench.tell(share_of_bus=2 * 4 * rows * here.embedding_dim / seconds / _bus(bench))


def _bus(bench: Bench) -> float:
    """Bytes a second from pinned memory to the device."""
    if bench.fake:
        return float("nan")
    source = torch.empty(bench.size(1 << 28, 1 << 20), pin_memory=bench.device.type == "cuda")
    target = source.to(bench.device)
    start = time.perf_counter()
    for _ in range(4):
        target.copy_(source, non_blocking=True)
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
    return 4 * 4 * source.numel() / (time.perf_counter() - start)
