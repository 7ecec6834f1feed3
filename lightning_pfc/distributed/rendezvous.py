"""Agreement between the processes of one launch before there is a process group."""

from __future__ import annotations

import datetime as dt
import itertools
import os
import time
from collections.abc import Callable

import torch.distributed as dist

from lightning_pfc.distributed.jobs import in_slurm

_TIMEOUT = dt.timedelta(minutes=5)
_calls = itertools.count()
_FIRST_PORT, _PORTS = 25_000, 7_000  # below the ports that systems give away by themselves, beside those of Lightning


def agree_on_text(what: str, choose: Callable[[], str], way_out: str, slurm_host: str | None = None) -> str:
    """What rank 0 chooses, on every rank of a ``torchrun`` launch or SLURM step; with one process, its own choice.

    Under torchrun the ranks meet in the store of its agent, which is there before any process group, and still there
    after a restart: then all get what was chosen at the first start. Under SLURM rank 0 opens a store for them. One
    round trip.

    Args:
        what: names the text, for messages; chosen once per launch.
        choose: called on rank 0 only.
        way_out: what to give instead, for the message.
        slurm_host: the host of rank 0, for SLURM.

    Raises:
        ValueError: if several processes were started by something that has no such store.
    """
    if "RANK" not in os.environ and slurm_host is not None and in_slurm():
        return _agree_in_slurm(what, choose, slurm_host)
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
    key = f"lightning_pfc/{what}"
    if rank == 0 and not store.check([key]):
        store.set(key, choose())
    return bytes(store.get(key)).decode()


def start_group_after_restart(backend: str, timeout: dt.timedelta | None) -> None:
    """After a restart by ``torchrun``, start the default group under keys of its own; do nothing otherwise.

    The store of torchrun's agent outlives the processes. Where they have left their addresses, those after the restart
    would find them, and wait for ever for processes that are gone.
    """
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restart in ("", "0") or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or dist.is_initialized():
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, timeout=timeout or _TIMEOUT)  # type: ignore[attr-defined]
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(f"lightning_pfc/restart-{restart}", store),  # type: ignore[attr-defined]
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timeout,
    )


def _agree_in_slurm(what: str, choose: Callable[[], str], host: str) -> str:
    rank, world_size = int(os.environ["SLURM_PROCID"]), int(os.environ.get("SLURM_NTASKS", "1"))
    if world_size == 1:
        return choose()
    # Another port each time, lest a rank that is done meets the store of the time before.
    number = int(os.environ["SLURM_JOB_ID"]) * 31 + int(os.environ.get("SLURM_STEP_ID", "0") or 0) + 1009 * next(_calls)
    port = _FIRST_PORT + number % _PORTS
    store = dist.TCPStore(  # type: ignore[attr-defined]
        host, port, is_master=rank == 0, wait_for_workers=False, timeout=_TIMEOUT
    )
    if rank == 0:
        store.set(what, choose())
    text = bytes(store.get(what)).decode()
    readers = store.add("readers", 1)
    deadline = time.monotonic() + _TIMEOUT.total_seconds()
    while rank == 0 and readers < world_size and time.monotonic() < deadline:
        time.sleep(0.01)  # the store goes with this process's last reference to it
        readers = store.add("readers", 0)
    return text
