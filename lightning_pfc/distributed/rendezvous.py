"""Agreement between the processes of one launch before there is a process group, and the start of that group."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from lightning_pfc.distributed.aside import aside
from lightning_pfc.distributed.door import listen_on
from lightning_pfc.distributed.jobs import in_slurm, step_host, step_rank, step_size
from lightning_pfc.distributed.meeting import TIMEOUT, agree_in_step, own_addresses
from lightning_pfc.processes.launching import saying_what_it_waits_for


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
        return agree_in_step(what, choose, slurm_host)
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1 or "RANK" not in os.environ:
        return choose()
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or address is None or port is None:
        raise ValueError(
            f"This is rank {rank} of {world_size} processes that were not started by torchrun or srun, and so cannot "
            f"agree on a {what}: give {way_out}, the same to all."
        )
    key = f"lightning_pfc/{what}"
    with saying_what_it_waits_for(f"waiting for torchrun at {address}, port {port}, to agree on a {what}"):
        store = aside(lambda: dist.TCPStore(address, int(port), is_master=False, timeout=TIMEOUT))  # type: ignore[attr-defined]
    if rank == 0 and not store.check([key]):
        store.set(key, choose())
    with saying_what_it_waits_for(f"waiting for rank 0 to say which {what}"):
        return aside(lambda: bytes(store.get(key)).decode())


def start_group_after_restart(backend: str, timeout: dt.timedelta | None) -> None:
    """After a restart by ``torchrun``, start the default group under keys of its own; do nothing otherwise.

    The store of torchrun's agent outlives the processes. Where they have left their addresses, those after the restart
    would find them, and wait for ever for processes that are gone.
    """
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restart in ("", "0") or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or dist.is_initialized():
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, timeout=timeout or TIMEOUT)  # type: ignore[attr-defined]
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(f"lightning_pfc/restart-{restart}", store),  # type: ignore[attr-defined]
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timeout,
    )


def start_group_alone(backend: str, timeout: dt.timedelta | None) -> None:
    """Start the default group of one process that no launcher started; do nothing if there is a group.

    There is nobody to meet: its store is in memory. The port that Lightning would choose can be taken by another run
    before it is opened, and would stay in the environment for what this process starts.
    """
    if not dist.is_initialized():
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)  # type: ignore[attr-defined]


def start_group_in_slurm(backend: str, timeout: dt.timedelta | None) -> None:
    """In a step of a SLURM job start the default group, at any port that is free; do nothing otherwise.

    Two steps on one host would meet at the port that Lightning derives from the job's number. ``MASTER_PORT`` is used
    as it is where it is given.

    Raises:
        OSError: on every rank, if not all come, or if rank 0 cannot open the port that was given.
    """
    if dist.is_initialized() or not in_slurm() or step_size() == 1:
        return
    rank, given = step_rank(), os.environ.get("MASTER_PORT")
    host = os.environ.get("MASTER_ADDR") or step_host()
    options: dict[str, Any] = {"timeout": timeout or TIMEOUT, "wait_for_workers": False}
    store: Any = None

    def open_store() -> str:
        nonlocal store
        try:
            (listener,) = listen_on(own_addresses(host)[:1], [0 if given is None else int(given)])
        except (OSError, ValueError) as error:
            return f"!{error}"  # the others would look for a store at whatever has the port
        number = int(listener.getsockname()[1])
        store = dist.TCPStore(host, number, is_master=True, master_listen_fd=listener.detach(), **options)  # type: ignore[attr-defined]
        return str(number)

    port = agree_on_text("port of the process group", open_store, "MASTER_PORT=NUMBER", host)
    if port.startswith("!"):
        what = f"rank 0 ({host}) can open no port" if given is None else f"MASTER_PORT={given} of {host}"
        raise OSError(f"{what}: {port[1:]}. Leave MASTER_PORT out, and a port that is free is found.")
    size = step_size()

    def connect() -> None:
        joined = store or dist.TCPStore(host, int(port), is_master=False, **options)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=joined, rank=rank, world_size=size, timeout=timeout)

    with saying_what_it_waits_for(f"waiting for all {size} processes of this run, which have met, to connect"):
        aside(connect)
