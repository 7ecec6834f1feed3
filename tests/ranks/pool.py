"""A pool of persistent processes that act as the ranks of a distributed run.

Starting a process that imports torch takes seconds, so one pool serves the whole test session. Every call of
:meth:`RankPool.run` gets a process group of its own, met through a file, so no port is ever chosen.
"""

from __future__ import annotations

import atexit
import faulthandler
import logging
import multiprocessing as mp
import os
import pickle
import random
import shutil
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

Group = bool | Literal["later"]
MAX_RANKS = 4
# Seconds that the other ranks have to notice an error by themselves, before the process of the one that raised ends.
PATIENCE = 3.0
# All ranks are done: only now a rank may close its connections, which the others may still have been reading from.
_RELEASE = b"release"
# The first is found where tests are started from the root, the others wherever, as they are installed.
PRELOADED = [
    "tests.ranks.preload",
    "torch",
    "torchvision",
    "timm",
    "lightning.pytorch",
    "lightning_pfc",
    "lightning_pfc.module",
]
# What the libraries of a worker read when they are imported.
WORKER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Outcome:
    """What one rank did: returned ``value``, or raised ``error`` (its ``type: message``, then its traceback)."""

    rank: int
    value: Any = None
    error: str | None = None
    traceback: str = ""
    broken: bool = False  # the process is in no state to run anything more


@dataclass(frozen=True)
class _Task:
    function: Callable[..., Any]
    args: tuple[Any, ...]
    rank: int
    world_size: int
    rendezvous: str | None
    later: bool
    timeout: float
    stacks: str


class RankPool:
    """Runs functions on 1 to 4 processes, each being one rank of a fresh gloo group.

    >>> pool = RankPool()                           # doctest: +SKIP
    >>> pool.run(2, function_of_a_module, argument)  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        atexit.register(self.close)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that are alive."""
        return [process.pid for process in self._processes if process.is_alive()]

    def run(
        self, world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 120, group: Group = True
    ) -> list[Any]:
        """Calls ``function(rank, world_size, *args)`` on every rank and returns what each returned, in order of rank.

        Args:
            world_size: number of ranks, 1 to 4.
            function: a function at the top level of an importable module.
            args: anything that can be pickled; every rank gets a copy of its own.
            timeout: seconds for the whole call and for each collective in it.
            group: whether the ranks meet in a process group; without one they know nothing of each other. With
                ``"later"`` the function says when, by calling :func:`join_group`.

        Raises:
            RuntimeError: a rank raised; the message holds its number and its traceback, of all ranks that raised.
            TimeoutError: a rank was not done in time; the message holds the stacks of all threads of those ranks.
        """
        outcomes = self.outcomes(world_size, function, *args, timeout=timeout, group=group)
        failed = [outcome for outcome in outcomes if outcome.error is not None]
        if failed:
            raise RuntimeError("\n".join(f"rank {o.rank} raised {o.error}\n{o.traceback}" for o in failed))
        return [outcome.value for outcome in outcomes]

    def outcomes(
        self, world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 120, group: Group = True
    ) -> list[Outcome]:
        """Like :meth:`run`, for tests about errors: what a rank raises is part of its outcome."""
        if not 1 <= world_size <= MAX_RANKS:
            raise ValueError(f"world_size={world_size} is not in 1..{MAX_RANKS}.")
        self._start(world_size)
        folder = Path(tempfile.mkdtemp(prefix="ranks-"))
        try:
            for rank in range(world_size):
                rendezvous = f"file://{folder / 'rendezvous'}" if group else None
                stacks = str(folder / f"stacks-{rank}.txt")
                task = _Task(function, args, rank, world_size, rendezvous, group == "later", timeout, stacks)
                self._pipes[rank].send_bytes(pickle.dumps(task))
            return self._collect(world_size, timeout, folder)
        except BaseException:
            # Something is still running, or never will again: only new processes are in a known state.
            self.close()
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _collect(self, world_size: int, timeout: float, folder: Path) -> list[Outcome]:
        deadline = time.monotonic() + timeout + 2.0  # the workers write their stacks first
        waiting = {self._pipes[rank]: rank for rank in range(world_size)}
        outcomes: dict[int, Outcome] = {}
        died: list[int] = []
        leave = deadline  # when ranks that have raised end their processes, as they would in a real run
        while waiting and (left := deadline - time.monotonic()) > 0:
            ready = wait(list(waiting), timeout=min(left, max(0.0, leave - time.monotonic())))
            if not ready and time.monotonic() >= leave:
                leave = deadline
                for rank in (rank for rank, outcome in outcomes.items() if outcome.error):
                    self._processes[rank].kill()
                    died.append(rank)
            for pipe in ready:
                rank = waiting.pop(pipe)  # type: ignore[call-overload]
                try:
                    outcomes[rank] = pickle.loads(pipe.recv_bytes())  # type: ignore[union-attr]
                except EOFError:
                    self._processes[rank].join(5)
                    code = self._processes[rank].exitcode
                    outcomes[rank] = Outcome(rank, error=f"ChildProcessError: the process ended with exit code {code}")
                    died.append(rank)
                if outcomes[rank].error and leave == deadline:
                    leave = min(deadline, time.monotonic() + PATIENCE)
        if waiting:
            late = sorted(waiting.values())
            stacks = [path.read_text() for rank in late if (path := folder / f"stacks-{rank}.txt").exists()]
            raised = [f"rank {o.rank} raised {o.error}\n{o.traceback}" for o in outcomes.values() if o.error]
            raise TimeoutError("\n".join([f"ranks {late} were not done after {timeout:g} s.", *raised, *stacks]))
        for rank in range(world_size):
            if rank not in died:
                self._pipes[rank].send_bytes(_RELEASE)
        if died or any(outcome.broken for outcome in outcomes.values()):
            self.close()
        return [outcomes[rank] for rank in range(world_size)]

    def _start(self, count: int) -> None:
        if any(not process.is_alive() for process in self._processes):
            self.close()
        context = mp.get_context("forkserver" if sys.platform == "linux" else "spawn")
        if sys.platform == "linux":  # one process imports, and new ones, after a kill too, are forked from it
            context.set_forkserver_preload(PRELOADED)
        before = len(self._processes)
        with _environment(WORKER_ENVIRONMENT):
            for _ in range(len(self._processes), count):
                ours, theirs = context.Pipe()
                # Ended with the parent whatever happens (`daemon`), yet free to start data loader workers (see _work).
                process = context.Process(target=_work, args=(theirs,), daemon=True)
                process.start()
                theirs.close()
                self._processes.append(process)
                self._pipes.append(ours)
        for pipe in self._pipes[before:]:
            pipe.recv_bytes()  # imports are done; they do not count as time of a test

    def close(self) -> None:
        """Kills the processes; the next call starts new ones."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


def _work(pipe: Connection) -> None:
    """The life of a worker: one task after the other, until the parent closes the pipe."""
    import torch

    import lightning_pfc  # noqa: F401 - what all tests need

    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    mp.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    if "lo" in {name for _, name in socket.if_nameindex()}:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host name that does not resolve must not matter
    pipe.send_bytes(b"ready")
    while True:
        try:
            message = pipe.recv_bytes()
        except EOFError:
            return
        if message == _RELEASE:
            _leave_group()
            continue
        outcome = _outcome(message)
        if outcome.error is not None:
            _leave_group()  # at once: the others may be waiting for this rank in a collective
        try:
            answer = pickle.dumps(outcome)
        except Exception as error:
            text = f"{type(error).__name__}: {error} (the returned value cannot be pickled)"
            answer = pickle.dumps(Outcome(outcome.rank, error=text))
        pipe.send_bytes(answer)


def _outcome(message: bytes) -> Outcome:
    global _current
    rank, broken = -1, True
    try:
        _current = task = pickle.loads(message)
        rank = task.rank
        with _environment({}), _fresh_state(), open(task.stacks, "w") as stacks:
            faulthandler.dump_traceback_later(task.timeout, file=stacks)
            try:
                if task.rendezvous is not None and not task.later:
                    join_group()
                broken = False
                return Outcome(rank, task.function(task.rank, task.world_size, *task.args))
            finally:
                faulthandler.cancel_dump_traceback_later()
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        return Outcome(rank, None, f"{type(error).__name__}: {error}", traceback.format_exc(), broken)


_current: _Task | None = None


def join_group() -> None:
    """Meet the other ranks of a call with ``group="later"``; for what must be built before the group exists."""
    import torch.distributed as dist

    if _current is None or _current.rendezvous is None:
        raise RuntimeError('join_group() is for a function that RankPool.run(..., group="later") calls.')
    dist.init_process_group(
        "gloo",
        init_method=_current.rendezvous,
        rank=_current.rank,
        world_size=_current.world_size,
        timeout=timedelta(seconds=_current.timeout),
    )
    dist.barrier()  # a rank that leaves at once must not close connections that are still being made


def _leave_group() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _fresh_state() -> Iterator[None]:
    """What one task does to the process must not reach the next one."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    folder, argv = os.getcwd(), list(sys.argv)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        torch.use_deterministic_algorithms(False)
        os.chdir(folder)
        sys.argv[:] = argv
        owner = sys.modules.get("lightning_pfc.distributed.owner")
        if owner is not None and hasattr(owner, "set_owner"):
            owner.set_owner(None, None)
