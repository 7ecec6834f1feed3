"""Agreement between the processes of one launch before there is a process group, and the start of that group."""

from __future__ import annotations

import datetime as dt
import getpass
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any

import torch.distributed as dist

from lightning_pfc.distributed.door import Door, addresses_of, enter, listen_on
from lightning_pfc.distributed.jobs import in_slurm, step_host, step_rank, step_size
from lightning_pfc.distributed.lines import Ended, Line
from lightning_pfc.launching import saying_what_it_waits_for

PORT_VARIABLE, SECRET_VARIABLE = "PFC_PORT", "PFC_SECRET"
_TIMEOUT = dt.timedelta(minutes=5)
_calls: Counter[str] = Counter()
_FIRST_PORT, _PORTS, _TRIES = 25_000, 7_000, 16  # below those that systems give away, beside those of Lightning


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
        TimeoutError: if not all ranks come.
    """
    if dist.is_initialized() or "MASTER_PORT" in os.environ or not in_slurm() or step_size() == 1:
        return
    host, rank = os.environ.get("MASTER_ADDR") or step_host(), step_rank()
    options: dict[str, Any] = {"timeout": timeout or _TIMEOUT, "wait_for_workers": False}
    store: Any = None

    def open_store() -> str:
        nonlocal store
        (listener,) = listen_on(_own_addresses(host)[:1])
        number = int(listener.getsockname()[1])
        store = dist.TCPStore(host, number, is_master=True, master_listen_fd=listener.detach(), **options)  # type: ignore[attr-defined]
        return str(number)

    port = agree_on_text("port of the process group", open_store, "MASTER_PORT=NUMBER", host)
    if rank:
        store = dist.TCPStore(host, int(port), is_master=False, **options)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=step_size(), timeout=timeout)


def step_ports() -> list[int]:
    """Where the ranks of a SLURM step look for rank 0 before there is a group, in this order; it takes the first free.

    From ``$PFC_PORT`` on, if that is given; else those that ``srun --resv-ports`` has reserved; else from a number on
    that job and step give.

    Raises:
        ValueError: if ``$PFC_PORT`` is no number of a port.
    """
    if given := os.environ.get(PORT_VARIABLE):
        if not given.isdecimal() or not 0 < int(given) <= 65535 - _TRIES:
            raise ValueError(f"{PORT_VARIABLE}={given} must be the number of a port, from 1 to {65535 - _TRIES}.")
        return [int(given) + n for n in range(_TRIES)]
    if reserved := os.environ.get("SLURM_STEP_RESV_PORTS"):
        first, _, last = reserved.split(",")[0].partition("-")
        return list(range(int(first), int(last or first) + 1))
    number = int(os.environ["SLURM_JOB_ID"]) * 31 + int(os.environ.get("SLURM_STEP_ID", "0") or 0)
    return [_FIRST_PORT + (number + n) % _PORTS for n in range(_TRIES)]


def _agree_in_slurm(what: str, choose: Callable[[], str], host: str) -> str:
    rank, size = step_rank(), step_size()
    if size == 1:
        return choose()
    # Who belongs together is told by this, so that a rank never takes another step, job or call for its own.
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", SECRET_VARIABLE)
    secret = "/".join([getpass.getuser(), *(os.environ.get(name, "") for name in names), what])
    _calls[secret] += 1
    secret += f"/{_calls[secret]}"
    ports = step_ports()
    where = f"{host}, port {ports[0]} to {ports[-1]}"
    with saying_what_it_waits_for(f"waiting for {'the other ranks' if rank == 0 else 'rank 0'} at {where}"):
        if rank == 0:
            return _tell(choose(), what, _own_addresses(host), secret, range(1, size), ports)
        return _ask(what, host, secret, rank, ports)


def _tell(
    text: str, what: str, addresses: Sequence[str], secret: str, ranks: Sequence[int], ports: Sequence[int]
) -> str:
    told: list[Line] = []

    def admit(rank: int, line: Line, about: Sequence[str]) -> None:
        line.send("text", text)
        told.append(line)

    try:
        door = Door(addresses, secret, ranks, admit, ports)
    except OSError as error:
        raise OSError(f"The ranks cannot agree on a {what}: {error}. Give {PORT_VARIABLE}=NUMBER.") from error
    door.open()
    all_came = door.wait(_TIMEOUT.total_seconds())
    door.close()
    for line in told:
        line.close(1.0)
    if not all_came:
        absent = ", ".join(map(str, sorted(door.absent)))
        raise TimeoutError(f"rank {absent} did not come within {_TIMEOUT} to agree on a {what}.")
    return text


def _ask(what: str, host: str, secret: str, rank: int, ports: Sequence[int]) -> str:
    deadline = time.monotonic() + _TIMEOUT.total_seconds()
    for port in itertools.cycle(ports):
        if (text := _ask_at(host, port, secret, rank)) is not None:
            return text
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"rank 0 ({host}, port {ports[0]} to {ports[-1]}) did not say within {_TIMEOUT} which {what}."
            )
        if port == ports[-1]:
            time.sleep(0.1)
    raise AssertionError


def _ask_at(host: str, port: int, secret: str, rank: int) -> str | None:
    try:
        line = enter(host, port, secret, rank, seconds=2.0)
    except OSError:
        return None
    try:
        word, text = line.take(10.0)
        return text if word == "text" else None
    except (Ended, ValueError):
        return None
    finally:
        line.close()


def _own_addresses(host: str) -> list[str]:
    """Where rank 0 listens: the addresses of its host. Everywhere, if its own name leads the host to itself only."""
    found = addresses_of(host)
    others = int(os.environ.get("SLURM_STEP_NUM_NODES", "1")) > 1
    return ["0.0.0.0"] if others and all(ip_address(each).is_loopback for each in found) else found
