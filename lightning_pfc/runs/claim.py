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
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning_pfc.distributed.jobs import in_slurm, job_name, restart_count, step_host
from lightning_pfc.distributed.rendezvous import agree_on_text
from lightning_pfc.runs.lock import Lock
from lightning_pfc.runs.records import set_aside
from lightning_pfc.storage.regular import read_regular
from lightning_pfc.storage.whole_files import write_json

RECORD = "run.json"
VARIABLE = "PFC_RUN_ID"  # of the processes that a run starts itself
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
