"""A contestant in a process of its own, doing one step when told to: so memory is its own, and turns interleave."""

from __future__ import annotations

import gc
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cases import Case


@dataclass(frozen=True)
class Check:
    """What the losses are compared by: the loss, and this rank's gradient of the embeddings."""

    loss: float
    x_grad: Any


class Remote:
    """All ranks of one contestant, from the side of the command."""

    def __init__(self, name: str, case: Case, peer: str | None) -> None:
        self.name, self.case = name, case
        self._folder = tempfile.TemporaryDirectory(prefix="benchmark-")
        # Forked from a server that has imported everything and computed nothing: fresh, and quick to start.
        context = get_context("forkserver")
        context.set_forkserver_preload(["contestants", "peer_head", "dense_head"])
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(case.ranks):
            ours, theirs = context.Pipe()
            meeting = f"file://{Path(self._folder.name) / 'rendezvous'}"
            process = context.Process(target=_serve, args=(theirs, name, case, rank, peer, meeting), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def ask(self, command: str, *args: Any) -> list[Any]:
        """What every rank answers, by rank.

        Raises:
            RuntimeError: if a rank raised; the message is its traceback.
        """
        for pipe in self._pipes:
            pipe.send((command, args))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            try:
                good, answer = pipe.recv()
            except (EOFError, OSError):
                good, answer = False, "the process has ended (out of memory?)"
            if not good:
                raise RuntimeError(f"{self.name}, rank {rank}: {answer}")
            answers.append(answer)
        return answers

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
        self._folder.cleanup()


def _serve(pipe: Connection, name: str, case: Case, rank: int, peer: str | None, meeting: str) -> None:
    import torch
    import torch.distributed as dist
    from contestants import CONTESTANTS

    torch.set_num_threads(case.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of peers
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    server: _Server | None = None
    while True:
        try:
            command, args = pipe.recv()
        except (EOFError, OSError):  # whoever asked has gone
            break
        try:
            if command == "build":
                maker: Any = CONTESTANTS[name]
                if case.ranks > 1 or maker.needs_group:
                    dist.init_process_group(
                        "gloo", init_method=meeting, rank=rank, world_size=case.ranks, timeout=timedelta(minutes=5)
                    )
                server = _Server(maker, case, rank, peer)
                pipe.send((True, None))
            else:
                pipe.send((True, getattr(server, command)(*args)))
        except Exception:
            pipe.send((False, traceback.format_exc()))
    if dist.is_initialized():
        dist.destroy_process_group()


class _Server:
    def __init__(self, maker: Any, case: Case, rank: int, peer: str | None) -> None:
        self.case, self.rank = case, rank
        case.local_batch(rank, 0)
        gc.collect()
        self.baseline = _memory("VmRSS")
        self.contestant = maker(case, rank, peer)
        _forget_peak()

    def check(self, loss: Any = None) -> Check:
        """Loss and gradient from the initial centers; our head computes the given loss, others draw what ours draws."""
        import torch

        contestant = self.contestant
        x, labels = self.case.local_batch(self.rank, 0)
        own = contestant.head.loss if loss is not None else None
        if loss is not None:
            contestant.head.loss = loss
            contestant.head.step.zero_()
        with nullcontext() if loss is not None or self.case.rate >= 1 else _our_draw(self.case, self.rank):
            value = contestant.forward(x, labels)
        contestant.backward(value)
        contestant.step() if contestant.steps_in_backward else contestant.optimizer.zero_grad()
        if loss is not None:
            contestant.head.loss = own
        _forget_peak()
        return Check(float(value.detach()), x.grad if x.grad is not None else torch.zeros(1))

    def step(self, number: int) -> dict[str, float]:
        """One training step: seconds of its three parts, and the loss."""
        x, labels = self.case.local_batch(self.rank, number)
        contestant, now = self.contestant, time.perf_counter
        start = now()
        loss = contestant.forward(x, labels)
        forward = now()
        contestant.backward(loss)
        backward = now()
        contestant.step()
        end = now()
        return {
            "forward": forward - start, "backward": backward - forward, "optimizer": end - backward, "total": end -
            start, "loss": float(loss.detach()),
        }  # fmt: skip

    def memory(self) -> dict[str, int]:
        """Bytes resident before the head was made, and at the highest since."""
        return {"baseline": self.baseline, "peak": _memory("VmHWM")}

    def wire(self, number: int) -> dict[str, Any]:
        """One step with every collective counted, by what it carries and by what the kernel says the sockets sent."""
        from lightning_pfc.planning.counting import CollectiveLog, bytes_sent

        before = bytes_sent()
        with CollectiveLog() as log:
            self.step(number)
        time.sleep(0.2)  # what is on its way arrives
        return {"calls": log.calls, "payload": log.sent, "sockets": bytes_sent() - before}

    def profile(self, number: int, rows: int) -> str:
        """Where the time of a step goes, by operator."""
        import torch

        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            self.step(number)
        return str(
            profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=rows, max_name_column_width=60)
        )


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; memory is measured on Linux only.")


def _forget_peak() -> None:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


@contextmanager
def _our_draw(case: Case, rank: int) -> Iterator[None]:
    """While open, ``torch.rand`` ranks first the classes that our head draws: whoever takes the top draws them."""
    import torch
    import torch.distributed as dist

    from lightning_pfc.distributed import ClassShard
    from lightning_pfc.heads.sampling.uniform_draw import class_budget, sample_uniform

    labels = case.local_batch(rank, 0)[1]
    if case.ranks > 1:
        parts = [torch.empty_like(labels) for _ in range(case.ranks)]
        dist.all_gather(parts, labels)
        labels = torch.cat(parts)
    shard = ClassShard(case.classes, rank, case.ranks)
    budget = class_budget(case.rate, case.classes)
    index = sample_uniform(labels, labels, shard, budget, case.seed, torch.tensor(0)).index
    score = torch.zeros(shard.num_local)
    score[index] = 1.0
    real, torch.rand = torch.rand, lambda *_, **__: score.clone()  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.rand = real
