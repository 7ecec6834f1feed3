"""Signals of a batch system, from the first line of a command to its last; and what is said to its controller then.

Within ``fit`` they are :class:`lightning_pfc.callbacks.Preemption`'s, which saves first. Here is all the rest: imports,
the data's index, the model, tests, plots. There is nothing to save then that is not saved already, so the job goes back
into the queue at once. This module comes before everything that takes long to import, and imports nothing of it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

CAUGHT = ("SIGTERM", "SIGUSR1")
_COMMAND, _MODULE = "pfc-train", "lightning_pfc.commands.train"
_PATIENCE = 10.0  # seconds in which rank 0 should have spoken to the controller

_requeue = True
_ignored: set[int] = set()  # by all_is_done


def catch_from_the_start() -> None:
    """Catch the signals if this process is the command ``pfc-train``, and leave those of any other program alone."""
    words = sys.orig_argv
    is_module = any(pair == ("-m", _MODULE) for pair in itertools.pairwise(words))
    if is_module or os.path.basename(sys.argv[0] if sys.argv else "").removesuffix(".exe") == _COMMAND:
        _catch()


@contextlib.contextmanager
def caught(names: Iterable[str] = CAUGHT, requeue: bool = True) -> Iterator[None]:
    """Catch the signals in a block, as far as nobody else does.

    Args:
        names: of the signals.
        requeue: whether a SLURM job is put back into the queue.
    """
    global _requeue
    before, _requeue = _requeue, requeue
    mine = _catch(names)
    try:
        yield
    finally:
        _requeue = before
        for number in mine:
            signal.signal(number, signal.SIG_DFL)
        _ignored.difference_update(mine)


def release() -> None:
    """Do nothing about the signals any more."""
    for number in _numbers(signal.Signals.__members__):
        if signal.getsignal(number) is leave:
            signal.signal(number, signal.SIG_DFL)


def all_is_done() -> None:
    """Nothing is left but to exit: from now on, a signal changes nothing."""
    for number in _numbers(signal.Signals.__members__):
        if signal.getsignal(number) is leave:
            signal.signal(number, signal.SIG_IGN)
            _ignored.add(number)


def _numbers(names: Iterable[str]) -> list[int]:
    main = threading.current_thread() is threading.main_thread()
    return [int(getattr(signal, name)) for name in names if main and hasattr(signal, name)]


def _catch(names: Iterable[str] = CAUGHT) -> list[int]:
    """The signals that are caught from now on and were not before."""
    free: list[Any] = [signal.SIG_DFL]
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun, which ignores what it does not pass on, and we inherit that
        free.append(signal.SIG_IGN)
    numbers = [n for n in _numbers(names) if n in _ignored or signal.getsignal(n) in free]
    for number in numbers:
        signal.signal(number, leave)
    mine = [number for number in numbers if number not in _ignored]
    _ignored.clear()
    return mine


def leave(number: int, frame: FrameType | None = None) -> None:
    """End this process, as a handler of signals; its job goes on later, if it is one that can."""
    signal.signal(number, signal.SIG_IGN)
    name, rank = signal.Signals(number).name, os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    requeued = False
    if _requeue and wants_requeue(number):
        if rank != "0":  # rank 0 has got the same; the end that it asks for reaches this process, too
            signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
            time.sleep(_PATIENCE)
        requeued, problem = requeue_job()
        what = f"requeued job {slurm_job()}" if requeued else f"job {slurm_job()} could not be requeued ({problem})"
    else:
        what = "leaving"
    # Not print: this may have interrupted one.
    os.write(2, f"{_COMMAND}: {name} while no training is under way; {what}.\n".encode())
    os._exit(0 if requeued else 128 + number)


# -- the controller


def slurm_job() -> str | None:
    """What ``scontrol requeue`` calls this job; None outside of one."""
    if "SLURM_PROCID" not in os.environ:
        return None
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}"
    job = os.environ.get("SLURM_JOB_ID")
    return job if job is not None and re.fullmatch(r"[0-9]+", job) else None


def wants_requeue(number: int) -> bool:
    """Whether the job must be requeued by itself: after a warning; after SIGTERM only if it is being preempted.

    Any other SIGTERM is ``scancel``, or ``scontrol requeue`` by somebody else.
    """
    return slurm_job() is not None and (number != signal.SIGTERM or is_preempted())


def is_preempted() -> bool:
    """Whether the controller is about to take this job's nodes for another one, and waits for it to end."""
    shown = _scontrol("show", "job", str(slurm_job()))[1]
    return "JobState=RUNNING" in shown and re.search(r"PreemptTime=\d", shown) is not None


def requeue_job() -> tuple[bool, str]:
    """Whether the controller has taken the job back into its queue, and otherwise why not."""
    job = str(slurm_job())
    done, text = _scontrol("requeue", job)
    # Another rank may have been faster.
    there = done or re.search(r"JobState=(PENDING|REQUEUED)|Reason=BeginTime", _scontrol("show", "job", job)[1])
    return bool(there), text


def _scontrol(*words: str) -> tuple[bool, str]:
    try:
        done: Any = subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    return done.returncode == 0, (done.stdout or done.stderr).strip()
