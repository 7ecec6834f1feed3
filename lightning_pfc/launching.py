"""Starting together: a process that rank 0 has started ends with it, and who waits for others says so."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator

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
    _say(f"rank 0 (process {parent}), which has started this process, has died while it was starting. Ended.")
    os._exit(1)


@contextlib.contextmanager
def saying_what_it_waits_for(text: str, first: float = _FIRST_WORD) -> Iterator[None]:
    """In the block this process waits for others: say so after ``first`` seconds, and again ever more seldom."""
    over = threading.Event()

    def tell() -> None:
        started, pause = time.monotonic(), first
        while not over.wait(pause):
            _say(f"{text}, for {time.monotonic() - started:.0f} s so far.")
            pause *= 2

    threading.Thread(target=tell, name="waiting", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _say(text: str) -> None:
    rank = next((os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ), "")
    with contextlib.suppress(Exception):
        print(f"{f'rank {rank}: ' if rank else ''}{text}", file=sys.stderr, flush=True)
