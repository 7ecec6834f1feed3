"""The end of a process: its groups first, while the interpreter is whole."""

from __future__ import annotations

import atexit
import gc

import torch.distributed as dist

from lightning_pfc.distributed.comm import forget_groups


def leave_at_exit() -> None:
    """End all process groups when this process exits by itself; harmless twice. No collective.

    A thread of gloo that is about to free the last collective's tensors needs the interpreter; if that is being torn
    down, the process aborts with "terminate called without an active exception", though all its work is done.
    """
    stay_at_exit()
    atexit.register(_leave)


def stay_at_exit() -> None:
    """Leave the groups alone at exit: after an error one may wait for ranks that never come, and so would its end."""
    atexit.unregister(_leave)


def _leave() -> None:
    if not (dist.is_available() and dist.is_initialized()):
        return
    forget_groups()  # a group's threads end with the last reference to it
    dist.destroy_process_group()
    gc.collect()
