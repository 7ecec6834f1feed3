"""What a batch system says about this process: which job it is a part of, and whether the job has run before."""

from __future__ import annotations

import os
import re

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def in_slurm() -> bool:
    """Whether this is a task of a SLURM job, and not of a shell inside one (``salloc``, ``srun --pty bash``)."""
    # such a shell keeps the variables of its own step; Lightning goes by the same names
    return {"SLURM_JOB_ID", "SLURM_PROCID"} <= os.environ.keys() and os.environ.get("SLURM_JOB_NAME") not in (
        "bash",
        "interactive",
    )


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


def refuse_lonely_task() -> None:
    """See that the tasks of a SLURM job were started by ``srun``: in the batch script itself there is only one of them.

    Raises:
        ValueError: with the way out, where the one process would wait for the others for ever.
    """
    tasks = os.environ.get("SLURM_NTASKS", "1")
    started = {"SLURM_STEP_ID", "TORCHELASTIC_RUN_ID", "SUBMITIT_EXECUTOR"} & os.environ.keys()
    if in_slurm() and not started and tasks.isdigit() and int(tasks) > 1:
        raise ValueError(
            f"This job has {tasks} tasks, and this process was started by the batch script itself: it would wait for "
            "the others for ever. Put srun before the command."
        )
