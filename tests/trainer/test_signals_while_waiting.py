"""A process that waits for others in C code ends with a signal all the same, at each place where it may wait so."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.test_train import NET, TINY, variables

# Each says "waiting" as soon as it waits, and catches signals as the command does.
START = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # who was started with & has it ignored
from lightning_pfc.processes import launching, signals
launching._FIRST_WORD = 0.2
"""
TRAIN = START + "signals._catch()\nfrom lightning_pfc.commands.train import main\nmain()"
EVALUATE = START + (
    "from lightning_pfc.commands.running import run_command\n"
    "from lightning_pfc.commands.judging import _ranks\n"
    "sys.exit(run_command('pfc-eval', lambda: _ranks().__enter__() and 0))"
)
AGREE = START + (
    "signals._catch()\n"
    "from lightning_pfc.distributed.rendezvous import agree_on_text\n"
    "agree_on_text('thing', lambda: 'text', 'nothing')"
)
CONNECT = START + (
    "signals._catch()\n"
    "from lightning_pfc.distributed import rendezvous\n"
    "rendezvous.agree_on_text = lambda what, choose, *rest: choose()\n"  # as if the other had come, and died then
    "rendezvous.start_group_in_slurm('gloo', None)"
)
AGENT = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "none"}
LEFT_OVER = {"LOCAL_RANK": "0", "WORLD_SIZE": "2"}
STEP = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "pfc"}


@pytest.fixture
def port() -> Iterator[int]:
    """Where nobody listens, as long as this is bound."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ended_by(number: int, program: str, folder: Path, *words: str, **where: str) -> tuple[int, str]:
    """Its status, and what it said, after a signal that came while it waited."""
    env = variables(MASTER_ADDR="127.0.0.1", **where)
    command = [sys.executable, "-c", program, *words]
    process = subprocess.Popen(
        command, cwd=folder, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if "waiting for" in line and "0 s so far" in line:
            break
    else:
        process.wait(60)
        raise AssertionError(said)
    process.send_signal(number)
    try:
        process.wait(60)
    finally:
        process.kill()
        said += process.communicate()[1]
    return process.returncode, said


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)])
def test_a_run_that_takes_itself_for_launched(tmp_path: Path, number: int, status: int) -> None:
    words = [*TINY, *NET, "trainer.devices=2", "logger=none", "plots=false", f"output_dir={tmp_path / 'run'}"]
    code, said = ended_by(number, TRAIN, tmp_path, *words, **LEFT_OVER, MASTER_PORT=str(free_port()))
    assert code == status, said
    assert "waiting for all 2 processes of this run to start (LOCAL_RANK=0 in the environment says" in said
    assert "else unset it)" in said
    assert ("SIGTERM while no training is under way; leaving" in said) == (number == signal.SIGTERM), said


def test_a_rank_whose_torchrun_is_gone(tmp_path: Path, port: int) -> None:
    where = AGENT | {"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": str(port)}
    code, said = ended_by(signal.SIGTERM, AGREE, tmp_path, **where)
    assert code == 143, said
    assert f"rank 1: waiting for torchrun at 127.0.0.1, port {port}, to agree on a thing, for 0 s" in said


def test_a_rank_whose_rank_0_does_not_say_what_it_chose(tmp_path: Path) -> None:
    serve = "import torch.distributed as d, sys; s = d.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)"
    agent = subprocess.Popen(
        [sys.executable, "-c", f"{serve}; print(s.port, flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with agent:
        assert agent.stdout is not None
        where = AGENT | {"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": agent.stdout.readline().strip()}
        code, said = ended_by(signal.SIGUSR1, AGREE, tmp_path, **where)
        agent.kill()
    assert code == 138, said
    assert "rank 1: waiting for rank 0 to say which thing" in said


def test_the_tasks_of_a_step_of_which_one_died_after_they_met(tmp_path: Path) -> None:
    code, said = ended_by(signal.SIGTERM, CONNECT, tmp_path, **STEP)
    assert code == 143, said
    assert "waiting for all 2 processes of this run, which have met, to connect" in said


def test_judging_together(tmp_path: Path) -> None:
    where = LEFT_OVER | {"RANK": "0", "MASTER_PORT": str(free_port())}
    code, said = ended_by(signal.SIGTERM, EVALUATE, tmp_path, **where)
    assert code == 143, said
    assert "waiting for all ranks of torchrun to start" in said
