"""What every test works with: heads, batches, clocks, and a count of what was really run."""

from __future__ import annotations

import gc
import itertools
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from acceptance.centers import centers_drawn_on
from acceptance.graphs import capture
from acceptance.verdict import NotRun
from lightning_pfc import PartialFC
from lightning_pfc.optim import SparseSGD
from lightning_pfc.planning.fake_step import fake_head
from lightning_pfc.planning.live_bytes import LiveBytes
from lightning_pfc.planning.model import H200, step_time
from lightning_pfc.planning.work import WorkLog

H200_MEMORY = 141 * 10**9

GB = 1e9
FLUSHED = 1 << 30  # bytes: 0.2 ms of an H200, twenty times its L2 cache
LONGEST = 5000.0  # milliseconds: a call that takes long is repeated less often


class Bench:
    """The device and its sizes; collects the figures of one test at a time.

    Args:
        device: "cuda", "cpu", or "meta", on which tensors have no values and everything is only gone through.
        small: sizes that two cores can do.
        peer: a folder with heads of others; None for none.
        seconds: that all tests may take together.
    """

    def __init__(self, device: str, *, small: bool, peer: Path | None = None, seconds: float = 600.0) -> None:
        self.device, self.small, self.peer = torch.device(device), small, peer
        self.fake = device == "meta"
        self.end = self.last = time.monotonic() + seconds
        self.listens: Callable[[dict[str, float]], None] = lambda figures: None
        self.start()

    def start(self, end: float | None = None) -> None:
        """A new test, which is to have ended by ``end`` on the monotonic clock; what others left behind is freed."""
        self.end = self.last if end is None else min(end, self.last)
        self._flushed: Tensor | None = None
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
        self.figures: dict[str, float] = {}
        self.notes: list[str] = []
        self.work = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """While open, every forward of a head counts as work, and centers are drawn on the device."""

        def count(module: nn.Module, *_: Any) -> None:
            self.work += isinstance(module, PartialFC)

        handle = nn.modules.module.register_module_forward_hook(count)
        try:
            with centers_drawn_on(self.device):
                yield
        finally:
            handle.remove()

    @property
    def left(self) -> float:
        """Seconds that this test has."""
        return self.end - time.monotonic()

    @property
    def works(self) -> bool:
        """Whether the device can go on: an error of a kernel stays until the process ends."""
        try:
            if self.device.type == "cuda":
                torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True

    def size(self, full: int, small: int, *, predicts: bool = False) -> int:
        """A size on a GPU, and where everything is small; without values too, unless a figure is predicted from it."""
        return small if self.small or (self.fake and not predicts) else full

    def tell(self, **figures: float) -> None:
        """Report figures."""
        self.figures.update({name: float(value) for name, value in figures.items()})
        self.listens(self.figures)

    def note(self, text: str) -> None:
        """Say something more."""
        self.notes.append(text)

    def needs_memory(self, gigabytes: float) -> None:
        """Leave a test out where the device is too small."""
        if self.device.type == "cuda":
            there = torch.cuda.get_device_properties(self.device).total_memory / GB
            if there < gigabytes:
                raise NotRun(f"needs {gigabytes:.0f} GB of memory, the device has {there:.0f}")

    # --- things to run ------------------------------------------------------------------------------------------------

    def head(self, **options: Any) -> PartialFC:
        """A head on the device."""
        usual: dict[str, Any] = {"embedding_dim": self.size(512, 64), "loss": "cosface", "check_finite": False}
        if self.fake:  # what an H200 keeps where nobody chose
            usual["memory_budget"] = H200_MEMORY // 16
        options = usual | options
        return fake_head(**options) if self.fake else PartialFC(**options).to(self.device)

    def sgd(self, head: PartialFC, **options: Any) -> SparseSGD:
        """Its optimizer, with momentum."""
        return SparseSGD(head.parameters(), **({"lr": 0.1, "momentum": 0.9} | options))

    def batch(
        self, head: PartialFC, rows: int, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """Embeddings (B, D) that ask for a gradient and labels (B,), the same on every device."""
        if self.fake:
            x = torch.empty(rows, head.embedding_dim, dtype=dtype, device=self.device)
            return x.requires_grad_(), torch.empty(rows, dtype=torch.int64, device=self.device)
        made = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, head.embedding_dim, generator=made).to(self.device, dtype)
        labels = torch.randint(head.num_classes, (rows,), generator=made).to(self.device)
        return x.requires_grad_(), labels

    def step(self, head: PartialFC, optimizer: torch.optim.Optimizer | None, x: Tensor, labels: Tensor) -> Tensor:
        """Forward, backward, update; the loss."""
        x.grad = None
        loss: Tensor = head(x, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    def in_turns(
        self, head: PartialFC, optimizer: torch.optim.Optimizer, inputs: Sequence[tuple[Tensor, Tensor]]
    ) -> Callable[[], object]:
        """A step with the next of some batches (embeddings, labels)."""
        turns = itertools.cycle(inputs)
        return lambda: self.step(head, optimizer, *next(turns))

    def replayed(
        self, head: PartialFC, optimizer: torch.optim.Optimizer, inputs: Sequence[tuple[Tensor, Tensor]]
    ) -> Callable[[], object]:
        """:meth:`in_turns` as a CUDA graph, which is what the device does without waiting for Python.

        Where there is no device, or no graph can be had (said in a note), the steps one by one.
        """
        if self.device.type != "cuda":
            return self.in_turns(head, optimizer, inputs)
        x, labels = inputs[0][0].detach().clone().requires_grad_(), inputs[0][1].clone()
        try:
            recorded, _ = capture(lambda: self.step(head, optimizer, x, labels))
        except RuntimeError as error:
            self.note(f"no graph: {error}")
            return self.in_turns(head, optimizer, inputs)
        turns = itertools.cycle(inputs)

        def step() -> None:
            with torch.no_grad():
                for mine, given in zip((x, labels), next(turns), strict=True):
                    mine.copy_(given)
            recorded.replay()

        return step

    def milliseconds(
        self, call: Callable[[], object], repeats: int = 30, warm_up: int = 10, *, graph: bool = False
    ) -> float:
        """Median time of a call; on tensors without values the time that is predicted for an H200.

        Args:
            call: what is timed.
            repeats: how often; fewer where a call takes long.
            warm_up: calls before that.
            graph: whether it is predicted as a CUDA graph.
        """
        self.work += 1
        if self.fake:
            call()
            with WorkLog() as log:
                call()
            predicted = step_time(log.works, H200)
            return 1e3 * (predicted.graph if graph else predicted.eager)
        if self.small:
            repeats, warm_up = min(repeats, 3), 1
        call()  # kernels are compiled now
        most = int(LONGEST / max(self._timed(call), 1e-3))
        for _ in range(min(warm_up, most)):
            call()
        return statistics.median(self._timed(call) for _ in range(max(1, min(repeats, most))))

    def _timed(self, call: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - start)
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._flush()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def _flush(self) -> None:
        """Write what no cache can hold: nothing of the last call is in one, and the device is busy.

        So the call is put in its queue meanwhile, and the time is that of the device where the host takes no longer.
        """
        if self._flushed is None:
            self._flushed = torch.empty(FLUSHED, dtype=torch.uint8, device=self.device)
        self._flushed.zero_()

    def child(self, command: list[str], seconds: float, **options: Any) -> subprocess.CompletedProcess[str]:
        """Another program; what it writes is kept from the screen."""
        self.work += 1
        if self.fake:
            return subprocess.CompletedProcess(command, 0, "", "")
        limit = max(1.0, min(seconds, self.left))
        return subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False, **options)

    def peak_memory(self, call: Callable[[], object]) -> float:
        """Bytes that a call has at most above what was there before it; NaN where nobody counts them.

        On tensors without values those that it would have, without what the libraries keep for themselves.
        """
        self.work += 1
        if self.fake:
            with LiveBytes() as live:
                call()
            return float(live.peak)
        if self.device.type != "cuda":
            call()
            return float("nan")
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return float(torch.cuda.max_memory_allocated() - before)

    # --- what tensors say ---------------------------------------------------------------------------------------------

    def number(self, value: Tensor | float) -> float:
        """The value, NaN where there is none."""
        if isinstance(value, Tensor):
            return float("nan") if value.is_meta else float(value)
        return float(value)

    def distance(self, ours: Tensor | None, twin: Tensor | None) -> float:
        """Norm of the difference over the norm of the second; infinite for NaN, infinity and what is not there."""
        if ours is None or twin is None:
            return float("inf")
        ours, twin = (x.detach().to_dense() if x.layout != torch.strided else x.detach() for x in (ours, twin))
        difference = torch.linalg.vector_norm(ours.double() - twin.double().to(ours.device))
        length = torch.linalg.vector_norm(twin.double())
        if self.fake:
            return float("nan")
        found = float(difference) / max(float(length), 1e-300)
        return found if found == found else float("inf")

    def same(self, ours: Tensor, twin: Tensor) -> float:
        """1 if two tensors are equal bit for bit, else 0."""
        if self.fake:
            return float("nan")
        return float(ours.shape == twin.shape and torch.equal(ours, twin.to(ours.device)))
