"""Signals outside of training: who is asked to put the job back, what the exit status is, and from when on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_pfc.processes import signals

HERE = Path(signals.__file__)
JOB = {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0"}

# The module by itself: the package around it takes seconds to import.
DRIVER = """
import importlib.util, os, signal, sys, time
spec = importlib.util.spec_from_file_location("signals", sys.argv[1])
signals = importlib.util.module_from_spec(spec)
spec.loader.exec_module(signals)
signals._PATIENCE = 0.5
{body}
"""
# A signal that comes between two instructions and the sleep after them is only seen when that sleep ends.
WAITS = "print('ready', flush=True); [time.sleep(0.1) for _ in range(3000)]"


class Program:
    """A Python process with a controller's command that notes what it was asked."""

    def __init__(self, folder: Path, body: str, shown: str = "JobState=RUNNING", **variables: str) -> None:
        self.calls = folder / "calls"
        scontrol = folder / "scontrol"
        scontrol.write_text(f'#!/bin/sh\n[ $1 = show ] && echo "{shown}" && exit\necho "$@" >>{self.calls}\n')
        scontrol.chmod(0o755)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SUBMITIT"))}
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER.format(body=body), str(HERE)],
            env=kept | variables | {"PATH": f"{folder}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def signal(self, *numbers: int) -> tuple[int, str, str]:
        """Its exit status, what it said, and what the controller was asked for."""
        for number in numbers:
            self.process.send_signal(number)
            time.sleep(0.1)
        _, said = self.process.communicate(timeout=120)
        return self.process.returncode, said, self.calls.read_text() if self.calls.exists() else ""


@pytest.mark.parametrize(
    ("number", "shown", "variables", "status", "said", "asked"),
    [
        (signal.SIGUSR1, "JobState=RUNNING", JOB, 0, "requeued job 77", "requeue 77\n"),
        (signal.SIGTERM, "JobState=RUNNING PreemptTime=2026-01-01T00:00:00", JOB, 0, "requeued job 77", "requeue 77\n"),
        (signal.SIGTERM, "JobState=RUNNING PreemptTime=None", JOB, 143, "leaving", ""),  # scancel
        (signal.SIGTERM, "JobState=COMPLETING", JOB, 143, "leaving", ""),  # scontrol requeue
        (signal.SIGUSR1, "", {}, 138, "SIGUSR1 while no training is under way; leaving", ""),
        (
            signal.SIGUSR1,
            "JobState=RUNNING",
            JOB | {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"},
            0,
            "requeued job 70_3",
            "requeue 70_3\n",
        ),
    ],
)
def test_the_job_goes_back_into_the_queue_where_nobody_else_puts_it(
    tmp_path: Path, number: int, shown: str, variables: dict[str, str], status: int, said: str, asked: str
) -> None:
    program = Program(tmp_path, f"signals._catch(); {WAITS}", shown, **variables)
    code, text, calls = program.signal(number)
    assert (code, calls) == (status, asked), text
    assert said in text
    assert text.count("\n") == 1


def test_other_ranks_leave_the_word_to_rank_0_and_speak_for_it_where_it_is_silent(tmp_path: Path) -> None:
    patient = f"signals._PATIENCE = 60.0; signals._catch(); {WAITS}"
    program = Program(tmp_path, patient, **JOB | {"SLURM_PROCID": "1"})
    assert program.signal(signal.SIGUSR1, signal.SIGTERM) == (0, "", "")  # the controller ends it
    code, text, calls = Program(tmp_path, f"signals._catch(); {WAITS}", **JOB | {"SLURM_PROCID": "1"}).signal(
        signal.SIGUSR1
    )
    assert (code, calls) == (0, "requeue 77\n"), text


def test_a_run_that_does_not_want_it_is_not_requeued(tmp_path: Path) -> None:
    body = f"signals._catch()\nwith signals.caught(requeue=False):\n    {WAITS}"
    assert Program(tmp_path, body, **JOB).signal(signal.SIGUSR1)[::2] == (138, "")


def test_a_run_without_preemption_is_left_to_the_signal(tmp_path: Path) -> None:
    program = Program(tmp_path, f"signals._catch(); signals.release(); {WAITS}", **JOB)
    assert program.signal(signal.SIGUSR1) == (-signal.SIGUSR1, "", "")


def test_nothing_happens_when_all_is_done(tmp_path: Path) -> None:
    body = "signals._catch(); signals.all_is_done(); print('ready', flush=True); time.sleep(0.5); print('end')"
    program = Program(tmp_path, body, **JOB)
    assert program.signal(signal.SIGUSR1, signal.SIGTERM) == (0, "", "")


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)]


def test_handlers_of_others_stay_and_ours_go() -> None:
    def theirs(*args: object) -> None: ...

    before = handlers()
    signal.signal(signal.SIGUSR1, theirs)
    with signals.caught(["SIGTERM", "SIGUSR1", "SIGUSR2"]):
        assert handlers() == [signals.leave, theirs, signals.leave]
        signals.all_is_done()
        assert handlers() == [signal.SIG_IGN, theirs, signal.SIG_IGN]
        with signals.caught(["SIGTERM", "SIGUSR2"]):  # the next job of a sweep
            assert handlers() == [signals.leave, theirs, signals.leave]
    assert handlers() == [signal.SIG_DFL, theirs, signal.SIG_DFL]
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    assert handlers() == before


def test_a_second_run_of_the_same_process_leaves_what_it_found() -> None:
    before = handlers()
    for _ in range(2):
        with signals.caught():
            assert signal.getsignal(signal.SIGTERM) is signals.leave
            signals.all_is_done()
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
        assert handlers() == before


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def catches(pid: int, number: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(line.split()[1] for line in lines if line.startswith("SigCgt:"))
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("how", ["script", "module"])
def test_the_command_catches_signals_before_it_imports_anything_large(how: str) -> None:
    script = Path(sysconfig.get_path("scripts"), "pfc-train")
    words = [str(script)] if how == "script" else [sys.executable, "-m", "lightning_pfc.commands.train"]
    if how == "script" and not script.exists():
        pytest.skip("the console scripts are not installed")
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: catches(process.pid, signal.SIGUSR1))
    assert "torch" not in Path(f"/proc/{process.pid}/maps").read_text()
    process.send_signal(signal.SIGUSR1)
    _, text = process.communicate(timeout=120)
    assert (process.returncode, text) == (138, "pfc-train: SIGUSR1 while no training is under way; leaving.\n")


def test_an_import_of_the_package_catches_nothing() -> None:
    assert handlers() == [signal.SIG_DFL] * 3


RECIPES = Path(__file__).parents[2] / "recipes" / "slurm"
OWN_PYTHON = f'PYTHONPATH={Path(__file__).parents[2]} exec {sys.executable} "$@"\n'


class Batch:
    """A script of recipes/slurm run by bash, with a controller and an srun that do as they are told."""

    def __init__(self, folder: Path, script: str) -> None:
        self.folder, self.script = folder, script

    def run(self, *statuses: int, shown: str = "", send: int = 0, **variables: str) -> tuple[int, list[str], str]:
        """Its exit status, what the controller was asked for, and what srun was given."""
        step = f"echo \"$@\" >>{self.folder}/given\ntrap 'echo caught >>{self.folder}/given; exit 138' USR1\n"
        step += f"touch {self.folder}/up\nfor _ in $(seq {50 if send else 0}); do sleep 0.1; done\n"
        self._program("srun", f"{step}exit {statuses[0]}\n")
        for name in ("scontrol", "scancel"):
            text = f"[ $1 = show ] && {{ [ $2 = hostnames ] && echo localhost || echo '{shown}'; exit; }}\n"
            self._program(name, f'{text}echo {name} "$@" >>{self.folder}/asked\n')
        self._program("python", OWN_PYTHON)
        job = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": "1", "SLURM_ARRAY_TASK_ID": "1"}
        process = subprocess.Popen(
            ["bash", str(RECIPES / self.script), "seed=1"],
            env={"PATH": f"{self.folder}:{os.environ['PATH']}"} | job | variables,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if send:
            wait_for(lambda: (self.folder / "up").exists())
            process.send_signal(send)
        process.communicate(timeout=120)
        return process.returncode, self._read("asked").splitlines(), self._read("given")

    def _program(self, name: str, text: str) -> None:
        (self.folder / name).write_text(f"#!/bin/bash\n{text}")
        (self.folder / name).chmod(0o755)

    def _read(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""


SCRIPTS = ["train.sbatch", "array.sbatch", "torchrun.sbatch"]
PREEMPTED = "JobState=RUNNING PreemptTime=2026-01-01T00:00:00"


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("status", "shown", "asked"),
    [
        (0, "", []),
        (138, "", ["scontrol requeue 77"]),  # a signal before there was a Python that could catch it
        (143, PREEMPTED, ["scontrol requeue 77"]),
        (143, "PreemptTime=None", []),  # scancel
        (1, PREEMPTED, []),
        (137, "", []),
    ],
)
def test_the_script_requeues_what_a_signal_has_ended(
    tmp_path: Path, script: str, status: int, shown: str, asked: list[str]
) -> None:
    code, found, given = Batch(tmp_path, script).run(status, shown=shown)
    assert (code, found) == (status, asked)
    assert "pfc-train" in given
    assert "seed=1" in given


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_signal_to_the_script_reaches_the_tasks(tmp_path: Path, script: str) -> None:
    code, asked, given = Batch(tmp_path, script).run(0, send=signal.SIGUSR1)
    assert "caught" in given
    assert (code, asked) == (138, ["scontrol requeue 77"])


def test_failures_are_tried_again_as_often_as_it_was_asked_for(tmp_path: Path) -> None:
    batch = Batch(tmp_path, "train.sbatch")
    for _ in range(2):
        assert batch.run(1, RETRIES="2")[0] == 1
    assert batch._read("asked").splitlines() == ["scontrol requeue 77"] * 2
    assert batch.run(1, RETRIES="2")[1] == ["scontrol requeue 77"] * 2  # no more
    assert batch.run(1)[1] == ["scontrol requeue 77"] * 2


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("status", [138, 143])
def test_of_an_array_one_task_goes_back_into_the_queue(tmp_path: Path, script: str, status: int) -> None:
    # SLURM_JOB_ID of its last task is the number of the whole array, whose other tasks may be running or done.
    batch = Batch(tmp_path, script)
    code, asked, _ = batch.run(status, shown=PREEMPTED, SLURM_ARRAY_JOB_ID="77", SLURM_ARRAY_TASK_ID="3")
    assert (code, asked) == (status, ["scontrol requeue 77_3"])


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(("number", "status"), [("USR1", 138), ("TERM", 143)])
def test_a_signal_before_there_are_tasks(tmp_path: Path, script: str, number: str, status: int) -> None:
    activate = tmp_path / "bin" / "activate"
    activate.parent.mkdir()
    activate.write_text(f"kill -{number} $$\n")
    code, asked, given = Batch(tmp_path, script).run(0, shown=PREEMPTED, VENV=str(tmp_path))
    assert (code, asked, given) == (status, ["scontrol requeue 77"], "")


def test_torchrun_saves_before_the_shell_around_it_ends(tmp_path: Path) -> None:
    def program(name: str, text: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)

    program("python", OWN_PYTHON)
    program("scontrol", f'[ $1 = show ] && {{ echo "{PREEMPTED}"; exit; }}; echo "$@" >>{tmp_path}/asked')
    program("srun", 'shift; exec "$@"')  # when the task has ended, SLURM kills what it has started
    saves = f"sleep 0.5; touch {tmp_path}/saved; exit 1"  # torchrun's status after SIGTERM
    program("torchrun", f"trap '{saves}' TERM; touch {tmp_path}/up; while :; do sleep 0.1; done")
    job = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": "1"}
    process = subprocess.Popen(
        ["bash", str(RECIPES / "torchrun.sbatch")],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"} | job,
        cwd=tmp_path,
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    wait_for((tmp_path / "up").exists)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 143
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
