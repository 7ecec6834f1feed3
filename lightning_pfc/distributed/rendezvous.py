"""Agreement between the processes of one launch before there is a process group."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable

import torch.distributed as dist

_TIMEOUT = dt.timedelta(minutes=5)


def agree_on_text(what: str, choose: Callable[[], str], way_out: str) -> str:
    """What rank 0 chooses, on every rank of a ``torchrun`` launch; with one process, what it chooses itself.

    The ranks meet in the store of torchrun's agent, which is there before any process group. One round trip.

    Args:
        what: names the text, for messages; each may be agreed upon once per launch (and restart).
        choose: called on rank 0 only.
        way_out: what to give instead, for the message.

    Raises:
        ValueError: if several processes were started by something that has no such store.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1 or "RANK" not in os.environ:
        return choose()
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or address is None or port is None:
        raise ValueError(
            f"This is rank {rank} of {world_size} processes that were not started by torchrun or srun, and so cannot "
            f"agree on a {what}: give {way_out}, the same to all."
        )
    store = dist.TCPStore(address, int(port), is_master=False, timeout=_TIMEOUT)  # type: ignore[attr-defined]
    key = f"lightning_pfc/{what}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if rank == 0:
        store.set(key, choose())
    return bytes(store.get(key)).decode()
