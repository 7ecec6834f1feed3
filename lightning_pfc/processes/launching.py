"""Starting together: a process that rank 0 has started ends with it, and who waits for others says so."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

RANK_0 = "PFC_RANK_0"
"""The variable that holds the process id of rank 0, for the processes that it starts by itself."""

_FIRST_WORD, _INTERVAL = 10.0, 1.0  # seconds
_together = threading.Event()


def follow_rank_0() -> None:
    """End this process with rank 0, if that has started it, until :func:`all_are_there`.

    Before there is a process group nothing else tells that rank 0 has died: this process would look for its port for as
    long as the group's time-out.
    """
    parent = os.environ.pop(RANK_0, "")
    if parent.isdecimal() and hasattr(os, "getppid"):
        threading.Thread(target=_follow, args=(int(parent),), name="follow", daemon=True).start()


def all_are_there() -> None:
    """The ranks have met: what happens to one of them is noticed by the others from now on."""
    _together.set()


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        if _together.wait(_INTERVAL):
            return
    say(f"rank 0 (process {parent}), which has started this process, has died while it was starting. Ended.")
    os._exit(1)


def tell_while_waiting(
    text: str | Callable[[], str], over: Callable[[float], bool], clock: Callable[[], float] = time.monotonic
) -> None:
    """Say what is waited for, each time after twice as long, until it is over.

    Args:
        text: what; or says what by then.
        over: waits for some seconds; whether it is over then.
        clock: seconds that only grow.
    """
    started, pause = clock(), _FIRST_WORD
    while not over(pause):
        now = text if isinstance(text, str) else text()
        say(f"{now}, for {clock() - started:.0f} s so far.")
        pause *= 2


@contextlib.contextmanager
def saying_what_it_waits_for(text: str | Callable[[], str]) -> Iterator[None]:
    """In the block this process waits for others: say so after ten seconds, and again ever more seldom."""
    over = threading.Event()
    threading.Thread(target=tell_while_waiting, args=(text, over.wait), name="waiting", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def say(text: str) -> None:
    """One line on the error stream, with the rank of this process."""
    rank = next((os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ), "")
    with contextlib.suppress(Exception):
        print(f"{f'rank {rank}: ' if rank else ''}{text}", file=sys.stderr, flush=True)
