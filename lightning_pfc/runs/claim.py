"""Whose a run folder is: one run at a time works in it, and a job that comes back finds its own state or is told.

The first start makes a run id. It is in ``run.json`` of the folder, with the job that made it, and in every checkpoint.
While the run goes on, ``.run.lock`` names its job, host and process.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning_pfc.distributed.jobs import in_slurm, job_name, restart_count, step_host
from lightning_pfc.distributed.rendezvous import agree_on_text
from lightning_pfc.runs.records import set_aside
from lightning_pfc.storage.regular import read_regular
from lightning_pfc.storage.whole_files import write_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

RECORD, LOCK = "run.json", ".run.lock"
VARIABLE = "PFC_RUN_ID"  # of the processes that a run starts itself
_EVERY, _SILENT, _PATIENCE = 20.0, 120.0, 15.0  # seconds: of the lock's pulse, without it, and for a process to end
_MOST = 1 << 16
_calls = itertools.count()


@dataclass(frozen=True)
class Claim:
    """What a process may take for its own.

    Attributes:
        run: the id of the run.
        comes_back: whether checkpoints of this run may be there already, to go on from.
    """

    run: str
    comes_back: bool


@contextlib.contextmanager
def claimed(folder: Path, *, goes_on: bool) -> Iterator[Claim]:
    """Take a run folder, on all ranks of a launch. Rank 0 decides.

    Args:
        folder: of the run; made if it is not there.
        goes_on: the user's word that the run in the folder is gone on with.

    Raises:
        ValueError: on every rank, if another run is at work there, or the folder holds the state of another run where
            this one would look for its own.
    """
    if (given := os.environ.get(VARIABLE)) is not None and given.partition(":")[0] != str(os.getpid()):
        yield Claim(given.partition(":")[2], False)  # a process that the one which has the lock has started
        return
    lock = Lock(folder)
    number = next(_calls)
    job = _job(number)

    def take() -> str:
        try:
            lock.take(job)
            claim = _decide(folder, job, goes_on)
        except (ValueError, OSError) as error:
            lock.give_back()
            return f"!{error}"
        return json.dumps(asdict(claim))

    try:
        text = _agreed(f"claim {number} of {folder} after {restart_count()} restarts", take)
        if text.startswith("!"):
            raise ValueError(text[1:])
        claim = Claim(**json.loads(text))
        os.environ[VARIABLE] = f"{os.getpid()}:{claim.run}"
        yield claim
    finally:
        os.environ.pop(VARIABLE, None)
        lock.give_back()


def _decide(folder: Path, job: str | None, goes_on: bool) -> Claim:
    record = read_record(folder)
    if goes_on:
        claim = Claim(str(record["run"]) if record else new_run(), restart_count() > 0)
        if record is None:
            _write(folder, claim.run, job)
        return claim
    again = restart_count() > 0
    if record is not None and job is not None and record.get("job") == job and (again or not job.startswith("slurm-")):
        return Claim(str(record["run"]), True)
    by_name = job is not None and folder.name == job_name()
    if (again or by_name) and (record is not None or _has_checkpoints(folder)):
        raise ValueError(_not_ours(folder, record, job, again))
    claim = Claim(new_run(), again)
    set_aside(folder / RECORD)
    _write(folder, claim.run, job)
    return claim


def new_run() -> str:
    """A new id."""
    return secrets.token_hex(8)


def read_record(folder: Path) -> dict[str, Any] | None:
    """What ``run.json`` says; None if it is not there, or says nothing that makes sense."""
    try:
        found = json.loads(read_regular(folder / RECORD, _MOST))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("run"), str) else None


def _write(folder: Path, run: str, job: str | None) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%S")
    write_json(folder / RECORD, {"run": run, "job": job, "host": socket.gethostname(), "started": now})


def _has_checkpoints(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("*.ckpt"))


def _not_ours(folder: Path, record: dict[str, Any] | None, job: str | None, again: bool) -> str:
    what = "checkpoints, and no run.json that says whose they are"
    if record is not None:
        of = f" of job {record['job']}" if record.get("job") else ""
        what = f"run {record['run']}{of}, started {record.get('started')} on {record.get('host')}"
    start = f"after {restart_count()} restarts" if again else "for the first time"
    return (
        f"{folder} holds {what}; it is not the run of this job ({job}, started {start}). Give another output_dir=, or "
        f"resume={folder} to go on with it."
    )


def _job(number: int) -> str | None:
    """What this job calls itself, the same after a requeue or a restart by torchrun."""
    name = job_name()
    if name is not None and name.startswith("slurm-"):
        cluster = os.environ.get("SLURM_CLUSTER_NAME")
        return f"{name} on {cluster}" if cluster else name
    if name is None and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # Its agent's store outlives a restart.
        return "torchrun " + agree_on_text(f"name of launch {number}", new_run, "--rdzv-id=ID")
    return name


def _agreed(what: str, take: Callable[[], str]) -> str:
    meets = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" or ("RANK" not in os.environ and in_slurm())
    if meets:
        return agree_on_text(what, take, "torchrun or srun", os.environ.get("MASTER_ADDR") or step_host())
    others = ("RANK", "NODE_RANK", "LOCAL_RANK")  # of launches in which the ranks cannot meet before there is a group
    if any(os.environ.get(name, "0") not in ("", "0") for name in others):
        return json.dumps(asdict(Claim("", False)))
    return take()


class Lock:
    """The file that says who is at work in a folder.

    What the system locks ends with the process; where another host does not see that, the file's age tells.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._file: int | None = None
        self._done = threading.Event()

    def take(self, job: str | None) -> None:
        """Take the lock.

        Raises:
            ValueError: naming the job and host that have it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0))
        try:
            until = time.monotonic() + _PATIENCE
            while (holder := self._holder(file, job)) is not None:
                own = job is not None and holder.get("job") == job  # it was requeued: what is there is about to end
                if not own or time.monotonic() > until:
                    raise ValueError(self._taken(holder))
                time.sleep(0.5)
            os.ftruncate(file, 0)
            me = {"job": job, "host": socket.gethostname(), "pid": os.getpid()}
            os.lseek(file, 0, os.SEEK_SET)  # not os.pwrite, which Windows lacks
            os.write(file, json.dumps(me).encode())
        except BaseException:
            os.close(file)
            raise
        self._file = file
        threading.Thread(target=self._pulse, args=(file,), daemon=True, name="run lock").start()

    def give_back(self) -> None:
        """Let others have it; harmless if it was never taken."""
        file, self._file = self._file, None
        if file is not None:
            self._done.set()
            with contextlib.suppress(OSError):
                os.ftruncate(file, 0)
            os.close(file)

    def _holder(self, file: int, job: str | None) -> dict[str, Any] | None:
        """Who has it; None if it is ours now."""
        free = True
        if fcntl is not None:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                free = False
        try:
            os.lseek(file, 0, os.SEEK_SET)
            found = json.loads(os.read(file, _MOST) or b"null")
        except (ValueError, RecursionError):
            found = None
        holder = found if isinstance(found, dict) and "host" in found else {}
        if not free:
            return holder
        # Ours, but for a file system on which hosts do not see each other's locks. A job comes back when it has ended.
        elsewhere = bool(holder) and (fcntl is None or holder.get("host") != socket.gethostname())
        elsewhere = elsewhere and (job is None or holder.get("job") != job)
        fresh = time.time() - os.fstat(file).st_mtime < _SILENT
        return holder if elsewhere and fresh else None

    def _taken(self, holder: dict[str, Any]) -> str:
        who = f"job {holder['job']}" if holder.get("job") else "another run"
        return (
            f"{self.path.parent} is in use by {who} on host {holder.get('host')} (process {holder.get('pid')}). Give "
            f"another output_dir=, or end that run first; {_SILENT:.0f} s without a sign of life count as its end."
        )

    def _pulse(self, file: int) -> None:
        while not self._done.wait(_EVERY):
            with contextlib.suppress(OSError):
                os.utime(self.path)
