"""Tests 6, 7 and 16: nothing waits, a graph replays the same bits, kernels keep within their memory."""

from __future__ import annotations

import shutil
import sys
import warnings

import torch

from acceptance.bench import Bench
from acceptance.verdict import NotRun
from lightning_pfc.planning.work import WorkLog

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "Memcpy DtoH", "cudaMalloc")


def waiting(bench: Bench) -> None:
    """20 steps of uniform sampling in which a wait raises; then what the profiler saw."""
    head = bench.head(num_classes=bench.size(1_000_000, 2000), sample_rate=0.1)
    optimizer = bench.sgd(head)
    batches = [bench.batch(head, bench.size(1024, 32), seed) for seed in range(4)]

    def steps(count: int) -> None:
        for number in range(count):
            bench.step(head, optimizer, *batches[number % 4])

    if bench.fake:
        with WorkLog() as log:
            steps(2)
        bench.tell(waits=sum(work.waits for work in log.works))
        return
    steps(5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps(20)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        steps(5)
        torch.cuda.synchronize()
    seen = [event.name for event in profile.events() if event.name.startswith(WAITS)]  # type: ignore[no-untyped-call]
    bench.tell(waits=sum(name not in ("cudaDeviceSynchronize",) for name in seen))


def graph(bench: Bench) -> None:
    """100 replays of a step with changing labels beside the same steps one by one: rate 1 and 0.1."""
    for rate in (1.0, 0.1):
        options = {"num_classes": bench.size(200_000, 2000), "sample_rate": rate, "seed": 1}
        eager, captured = bench.head(**options), bench.head(**options)
        eager_sgd, captured_sgd = bench.sgd(eager), bench.sgd(captured)
        x, labels = bench.batch(captured, bench.size(1024, 32))
        inputs = [bench.batch(eager, bench.size(1024, 32), seed) for seed in range(5)]
        if bench.fake:
            bench.step(captured, captured_sgd, x, labels)
            bench.tell(**{f"same_r{rate:g}".replace(".", ""): float("nan")})
            continue
        recorded = _capture(bench, captured, captured_sgd, x, labels)
        with torch.no_grad():
            eager.load_state_dict(captured.state_dict())
        eager_sgd.load_state_dict(captured_sgd.state_dict())
        for number in range(100):
            other_x, other_labels = inputs[number % 5]
            with torch.no_grad():
                x.copy_(other_x)
                labels.copy_(other_labels)
            recorded.replay()
            bench.step(eager, eager_sgd, other_x, other_labels)
        bench.tell(**{f"same_r{rate:g}".replace(".", ""): bench.same(captured.weight, eager.weight)})


def _capture(
    bench: Bench, head: object, optimizer: torch.optim.Optimizer, x: torch.Tensor, labels: torch.Tensor
) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            bench.step(head, optimizer, x, labels)  # type: ignore[arg-type]
    torch.cuda.current_stream().wait_stream(side)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        bench.step(head, optimizer, x, labels)  # type: ignore[arg-type]
    return recorded


PROGRAM = """
import torch
import lightning_pfc.heads.sampling, lightning_pfc.kernels, lightning_pfc.optim.row_kernels
from lightning_pfc.kernels import choice
from lightning_pfc.kernels.library import OPERATIONS
{draw}
device = torch.device("cuda")
for name, operation in OPERATIONS.items():
    for arguments in choice._PLANTED[name](device):
        operation.triton(*arguments)
torch.cuda.synchronize()
print("done", len(OPERATIONS))
"""


def sanitizer(bench: Bench) -> None:
    """compute-sanitizer over every kernel of ours at a small size: memory and races."""
    tool = shutil.which("compute-sanitizer")
    if tool is None and not bench.fake:
        raise NotRun("compute-sanitizer is not there; it comes with CUDA's toolkit")
    draw = "import importlib.util\n" + "\n".join(
        f"if importlib.util.find_spec({name!r}): import {name}"
        for name in ("lightning_pfc.heads.sampling.draw_kernel", "lightning_pfc.kernels.draw")
        if _exists(name)
    )
    for kind in ("memcheck", "racecheck"):
        command = [str(tool), "--tool", kind, "--error-exitcode", "9", sys.executable, "-c", PROGRAM.format(draw=draw)]
        done = bench.child(command, 60)
        bench.tell(**{f"{kind}_errors": float(done.returncode != 0 or (not bench.fake and "done" not in done.stdout))})
    if bench.fake:
        _walk_kernels()


def _exists(name: str) -> bool:
    import importlib.util

    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _walk_kernels() -> None:
    """Every operation once, on tensors without values."""
    import lightning_pfc.optim.row_kernels  # noqa: F401  registers its operations
    from lightning_pfc.kernels import choice
    from lightning_pfc.kernels.library import OPERATIONS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, operation in OPERATIONS.items():
            for arguments in choice._PLANTED[name](torch.device("cpu")):
                operation(*(a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments))
