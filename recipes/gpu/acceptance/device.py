"""Tests 6, 7 and 16: nothing waits, a graph replays the same bits, kernels keep within their memory."""

from __future__ import annotations

import functools
import math
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable

import torch

from acceptance.bench import Bench
from acceptance.graphs import capture
from acceptance.verdict import NotRun
from lightning_pfc.planning.work import WorkLog

STEPS, REPLAYS = 20, 100
WAITS_OF = (
    ("cudaStreamSynchronize", "cuStreamSynchronize"),
    ("cudaEventSynchronize", "cuEventSynchronize"),
    ("cudaDeviceSynchronize", "cuCtxSynchronize"),
)
"""By which calls the host waits: for a stream, for an event, for the device."""
_OF_THE_PROFILER = 2
WAYS = ((0.1, False), (0.1, True), (1.0, True))
"""Rates, and whether rows are updated in the backward pass."""


def waiting(bench: Bench) -> None:
    """20 steps of uniform sampling in which a wait raises; then what the profiler saw of as many."""
    totals: dict[str, float] = {}
    for rate, in_backward in WAYS:
        steps = _steps(bench, rate, in_backward)
        if bench.fake:
            with WorkLog() as log:
                steps(2)
            found = {"waits": float(sum(work.waits for work in log.works))}
        else:
            steps(5)
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                steps(STEPS)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            found = waits_among(_profiled(lambda s=steps: s(STEPS)), STEPS)  # type: ignore[misc]
        totals = {name: max(value, totals.get(name, 0.0)) for name, value in found.items()}
    bench.tell(**totals)


def _steps(bench: Bench, rate: float, in_backward: bool) -> Callable[[int], None]:
    head = bench.head(num_classes=bench.size(1_000_000, 2000), sample_rate=rate)
    optimizer = bench.sgd(head, update_in_backward=in_backward)
    batches = [bench.batch(head, bench.size(1024, 32), seed) for seed in range(4)]

    def steps(count: int) -> None:
        for number in range(count):
            bench.step(head, optimizer, *batches[number % 4])

    return steps


def _profiled(call: Callable[[], object]) -> list[str]:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
    return [event.name for event in profile.events()]  # type: ignore[no-untyped-call]


def waits_among(names: Iterable[str], steps: int) -> dict[str, float]:
    """Figures of what a profiler saw during some steps.

    A copy to pinned memory is not waited for: one a step brings what was wrong with the batch before, which the next
    step looks at, after an event that has long passed. The profiler itself waits for the device, once before and once
    after.
    """
    seen = list(names)
    if not any(name.startswith(("cudaLaunchKernel", "cuLaunchKernel")) for name in seen):
        raise RuntimeError("the profiler saw no kernel started; it has no access to the counters of this GPU")
    back = [name for name in seen if name.startswith("Memcpy DtoH")]
    pinned = [name for name in back if "Pinned" in name]
    streams, events, devices = (sum(name.startswith(kind) for name in seen) for kind in WAITS_OF)
    return {
        "waits": float(streams + max(0, devices - _OF_THE_PROFILER)),
        "events_a_step": events / steps,
        "copies_back": float(len(back) - len(pinned)),
        "allocations": float(sum(name.startswith(("cudaMalloc", "cudaHostAlloc", "cudaFree")) for name in seen)),
        "checks_a_step": len(pinned) / steps,
    }


def graph(bench: Bench) -> None:
    """100 replays of a step with changing labels beside the same steps one by one: rate 1 and 0.1."""
    for rate in (1.0, 0.1):
        figure = f"same_r{rate:g}".replace(".", "")
        options = {"num_classes": bench.size(200_000, 2000), "sample_rate": rate, "seed": 1}
        eager, captured = bench.head(**options), bench.head(**options)
        rates = [torch.full((), 0.1, device="cpu" if bench.fake else bench.device) for _ in range(2)]
        optimizers = [
            bench.sgd(head, lr=lr, update_in_backward=True, capturable=True)
            for head, lr in zip((eager, captured), rates, strict=True)
        ]
        x, labels = bench.batch(captured, bench.size(1024, 32))
        if bench.fake:
            bench.step(captured, optimizers[1], x, labels)
            bench.tell(**{figure: float("nan")})
            continue
        recorded, loss = capture(functools.partial(bench.step, captured, optimizers[1], x, labels))
        with torch.no_grad():
            eager.load_state_dict(captured.state_dict())
        optimizers[0].load_state_dict(optimizers[1].state_dict())
        optimizers[0].param_groups[0]["lr"] = rates[0]
        inputs = [bench.batch(eager, labels.shape[0], seed) for seed in range(5)]
        equal = torch.ones((), dtype=torch.bool, device=bench.device)
        for number in range(REPLAYS):
            other_x, other_labels = inputs[number % 5]
            with torch.no_grad():
                x.copy_(other_x)
                labels.copy_(other_labels)
                for lr in rates:
                    lr.mul_(0.99)  # as a schedule does
            recorded.replay()
            equal &= bench.step(eager, optimizers[0], other_x, other_labels) == loss
        captured.check()
        bench.tell(**{figure: min(float(equal), bench.same(captured.weight, eager.weight))})


PROGRAM = """
import sys, torch
import lightning_pfc.heads.sampling.draw_kernel, lightning_pfc.kernels, lightning_pfc.optim.row_kernels
from lightning_pfc.kernels import choice
from lightning_pfc.kernels.library import OPERATIONS
device, calls = torch.device(sys.argv[1]), 0
for name, operation in OPERATIONS.items():
    for arguments in choice._PLANTED[name](device):
        operation.triton(*arguments)
        calls += 1
if device.type == "cuda":
    torch.cuda.synchronize()
print(f"started {calls} calls of {len(OPERATIONS)} operations")
"""
_SUMMARY = {"memcheck": r"ERROR SUMMARY: (\d+) error", "racecheck": r"RACECHECK SUMMARY: (\d+) hazard"}


def sanitizer(bench: Bench) -> None:
    """compute-sanitizer over every kernel of ours at a small size: memory and races."""
    tool = shutil.which("compute-sanitizer")
    if tool is None and not bench.fake:
        raise NotRun("compute-sanitizer is not there; it comes with CUDA's toolkit")
    # each tensor in memory of its own, or what a kernel writes beyond one lies in another and is not seen
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for kind in _SUMMARY:
        command = [str(tool), "--tool", kind, "--print-limit", "3", sys.executable, "-c", PROGRAM, bench.device.type]
        done = bench.child(command, 120, env=environment)
        if bench.fake:
            bench.tell(**{f"{kind}_errors": float("nan")})
            continue
        found = errors_found(kind, done.stdout)
        bench.tell(**{f"{kind}_errors": found})
        if found:
            bench.note(f"{kind}: {(done.stdout + done.stderr)[-200:]}")
    if bench.fake:
        _walk_kernels()


def errors_found(kind: str, text: str) -> float:
    """What a tool of compute-sanitizer counted; infinite where it did not say, or the kernels were not all started."""
    from lightning_pfc.kernels.library import OPERATIONS

    summary = re.search(_SUMMARY[kind], text)
    started = re.search(r"started (\d+) calls of (\d+) operations", text)
    whole = started is not None and int(started[1]) >= int(started[2]) == len(OPERATIONS)
    return float(summary[1]) if summary is not None and whole else math.inf


def _walk_kernels() -> None:
    """Every operation once, on tensors without values."""
    import lightning_pfc.heads.sampling.draw_kernel
    import lightning_pfc.optim.row_kernels  # noqa: F401  both register operations
    from lightning_pfc.kernels import choice
    from lightning_pfc.kernels.library import OPERATIONS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, operation in OPERATIONS.items():
            for arguments in choice._PLANTED[name](torch.device("cpu")):
                operation(*(a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments))
