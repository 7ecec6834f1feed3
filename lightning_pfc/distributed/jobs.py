"""What a batch system says about this process: which job it is a part of, and whether the job has run before."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import subprocess
import sys
from collections.abc import Sequence

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


_SHELLS = ("bash", "interactive")  # what srun --pty bash and salloc call their jobs; Lightning goes by the same names


def in_slurm() -> bool:
    """Whether this is a task of a SLURM job, and not of a shell inside one (``salloc``, ``srun --pty bash``).

    Such a shell keeps the variables of its own step; but what has several tasks is no shell.
    """
    if not {"SLURM_JOB_ID", "SLURM_PROCID"} <= os.environ.keys():
        return False
    return os.environ.get("SLURM_JOB_NAME") not in _SHELLS or (step_size() > 1 and not _is_typed())


def _is_typed() -> bool:
    """Whether somebody has typed the command in a shell that ``srun --pty`` has started: the other tasks have ended.

    Such a shell gives each command a process group of its own; a script leaves its commands in the one of the task.
    """
    with contextlib.suppress(ValueError, AttributeError):  # no stdin; Windows
        return "SLURM_PTY_PORT" in os.environ and sys.stdin.isatty() and os.getpgrp() != os.getsid(0)
    return False


def step_rank() -> int:
    """Of this task in its step."""
    return int(os.environ.get("SLURM_PROCID", "0"))


def step_size() -> int:
    """How many tasks this task's step has."""
    return _number("SLURM_STEP_NUM_TASKS", _number("SLURM_NTASKS", 1))


def step_host() -> str:
    """The first host of the step, where its rank 0 is: not always the first one of the job."""
    hosts = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST") or "localhost"
    first = re.match(r"([^,\s\[]+)(?:\[(\d+)[^\]]*\])?([^,\s\[]*)", hosts)
    return "".join(part or "" for part in first.groups()) if first else hosts


def host_of_rank(rank: int) -> str | None:
    """Where a task of this task's step runs; None where SLURM does not say, or does not deal tasks out in blocks."""
    hosts = _hosts(os.environ.get("SLURM_STEP_NODELIST", ""))
    if not hosts or os.environ.get("SLURM_DISTRIBUTION", "block").split(":")[0].split(",")[0] != "block":
        return None
    place = rank * len(hosts) // step_size()
    return hosts[place] if place < len(hosts) else None


@functools.cache
def _hosts(nodes: str) -> list[str]:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        words = ["scontrol", "show", "hostnames", nodes]
        return subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.split()
    return []


def adopt_step() -> None:
    """Say to Lightning and to the configs what the step of this task is, where SLURM's variables speak of the job.

    ``srun`` leaves the name of the shell that it was typed in, and the tasks per node and the first host of the job.

    Raises:
        ValueError: for a step whose nodes have different numbers of tasks.
    """
    if "RANK" in os.environ or not in_slurm() or "SLURM_STEP_ID" not in os.environ or step_size() == 1:
        return
    if os.environ.get("SLURM_JOB_NAME") in _SHELLS:
        os.environ["SLURM_JOB_NAME"] = "pfc"
    per_node = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    if match := re.fullmatch(r"(\d+)(\(x\d+\))?", per_node):
        os.environ["SLURM_NTASKS_PER_NODE"] = match[1]
    elif per_node:
        raise ValueError(
            f"This step has {step_size()} tasks, {per_node} by node; every node must have the same number: give srun "
            "--nodes and --ntasks-per-node."
        )
    os.environ.setdefault("MASTER_ADDR", step_host())


def check_number_of_processes(devices: object, num_nodes: object) -> None:
    """See that a launch has the processes that the trainer expects, before data and model are built.

    Args:
        devices: of the Trainer; what is neither a number nor a list is not checked here.
        num_nodes: of the Trainer.

    Raises:
        ValueError: with the words that fit the launch.
    """
    devices = len(devices) if isinstance(devices, Sequence) and not isinstance(devices, str) else devices
    if not isinstance(devices, int) or not isinstance(num_nodes, int) or devices < 1:
        return
    if {"RANK", "WORLD_SIZE"} <= os.environ.keys() and "LOCAL_WORLD_SIZE" in os.environ:
        what, tasks = "torchrun", _number("WORLD_SIZE", 1)
        nodes = tasks // max(1, _number("LOCAL_WORLD_SIZE", 1))
    elif in_slurm():
        what, tasks = "this SLURM step", step_size()
        nodes = _number("SLURM_STEP_NUM_NODES", _number("SLURM_NNODES", 1))
    else:
        return
    if (devices * num_nodes, num_nodes) == (tasks, nodes):
        return
    way_out = f"trainer.num_nodes={nodes} trainer.devices={tasks // nodes}"
    if what != "torchrun" and tasks > 1:
        way_out += ", or profile=slurm"
    elif what != "torchrun" and devices * num_nodes > 1:
        way_out += f", or srun --nodes={num_nodes} --ntasks-per-node={devices}"
    raise ValueError(
        f"trainer.num_nodes={num_nodes} and trainer.devices={devices} are {devices * num_nodes} processes, on "
        f"{num_nodes} nodes; {what} has {tasks}, on {nodes}. Give {way_out}."
    )


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default


def job_name() -> str | None:
    """A name for what is running, from the job's id: the same in all of its processes, and after a requeue.

    ``slurm-42``, ``slurm-40_3`` for a task of an array, ``slurm-42.1`` for the second step (``srun``) of a job;
    ``torchrun-ID`` where an id was given to ``torchrun --rdzv-id``. None otherwise.
    """
    if in_slurm():
        job = os.environ["SLURM_JOB_ID"]
        if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
            job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}"
        step = os.environ.get("SLURM_STEP_ID", "0")
        return f"slurm-{job}" if step in ("", "0") else f"slurm-{job}.{step}"
    run = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if run in ("", "none") or _UUID.fullmatch(run):  # --standalone makes one up
        return None
    return "torchrun-" + re.sub(r"[^\w.-]", "_", run)


def restart_count() -> int:
    """How often this job was requeued by SLURM, or restarted by ``torchrun --max-restarts``; 0 at its first start."""
    counts = (os.environ.get(name, "0") for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))
    return sum(int(count) for count in counts if count.isdigit())


def refuse_lonely_task(num_nodes: object) -> str | None:
    """See that the tasks of a SLURM job were started by ``srun``: outside of it there is only one of them.

    Args:
        num_nodes: of the Trainer.

    Returns:
        What to say where this process runs by itself in the shell of a larger allocation, else None.

    Raises:
        ValueError: with the way out, where the one process would wait for the others for ever.
    """
    tasks = max(_number("SLURM_NTASKS", 1), _number("SLURM_NNODES", 1))
    started = {"SLURM_STEP_ID", "TORCHELASTIC_RUN_ID", "SUBMITIT_EXECUTOR"} & os.environ.keys()
    if in_slurm() and not started and tasks > 1:
        raise ValueError(
            f"This job has {tasks} tasks, and this process was started by the batch script itself: it would wait for "
            "the others for ever. Put srun before the command."
        )
    launched = {"RANK", "NODE_RANK", "LOCAL_RANK", "MASTER_ADDR"} & os.environ.keys()
    if in_slurm() or launched or "SLURM_JOB_ID" not in os.environ:
        return None
    if isinstance(num_nodes, int) and num_nodes > 1:
        raise ValueError(
            f"trainer.num_nodes={num_nodes}: this process is in a shell that holds an allocation, and would wait "
            f"for those on other nodes for ever. Put srun before the command: srun --nodes={num_nodes} "
            "--ntasks-per-node=NUMBER."
        )
    if tasks > 1:
        return (
            f"This shell holds an allocation of {tasks} tasks; this run is none of them, on this machine alone. "
            "srun before the command runs it in all."
        )
    return None
