"""What SLURM and torchrun say of a process: who is a task and who a shell, where rank 0 is, how many there must be."""

from __future__ import annotations

import ast
import io
import os
import socket
import sys
from pathlib import Path

import pytest
from lightning.fabric.plugins.environments import SLURMEnvironment

import lightning_pfc
from lightning_pfc.distributed import jobs
from lightning_pfc.distributed.door import addresses_of
from lightning_pfc.distributed.ports import step_ports

TASK = {"SLURM_JOB_ID": "42", "SLURM_PROCID": "1", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "train"}
SEVERAL = TASK | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
SALLOC = SEVERAL | {"SLURM_JOB_NAME": "interactive"}


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(
            ("SLURM", "TORCHELASTIC", "SUBMITIT", "PFC_", "MASTER_", "RANK", "WORLD_", "LOCAL_", "NODE_")
        ):
            monkeypatch.delenv(name)


def put(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("variables", "typed", "inside"),
    [
        ({}, False, False),
        (TASK, False, True),
        (SALLOC, False, True),  # salloc, then srun: several tasks are no shell
        (SEVERAL | {"SLURM_JOB_NAME": "bash"}, False, True),  # srun --pty bash, and in it srun again
        (SEVERAL | {"SLURM_JOB_NAME": "bash", "SLURM_PTY_PORT": "1"}, True, False),  # in the shell itself
        (SEVERAL | {"SLURM_JOB_NAME": "bash", "SLURM_PTY_PORT": "1"}, False, True),  # a step typed there
        (TASK | {"SLURM_JOB_NAME": "interactive"}, False, False),
        ({"SLURM_JOB_ID": "42", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "interactive"}, True, False),  # after salloc
    ],
)
def test_who_is_a_task_and_who_is_a_shell(
    variables: dict[str, str], typed: bool, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch, variables)
    monkeypatch.setattr(sys, "stdin", Terminal() if typed else io.StringIO())
    monkeypatch.setattr(os, "getpgrp", lambda: os.getsid(0) + 1)  # as an interactive shell starts its commands
    assert jobs.in_slurm() is inside


def test_a_script_that_a_terminal_is_lent_to_is_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """srun -n2 --pty bash script.sh: the first task must not go alone while the second waits for it."""
    put(monkeypatch, SEVERAL | {"SLURM_JOB_NAME": "bash", "SLURM_PTY_PORT": "1"})
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(os, "getpgrp", lambda: os.getsid(0))
    assert jobs.in_slurm()


def test_a_shell_that_holds_an_allocation_is_told_of_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, {"SLURM_JOB_ID": "42", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"})
    said = jobs.refuse_lonely_task(1)
    assert said is not None
    assert "an allocation of 4 tasks" in said
    assert "srun before the command" in said
    with pytest.raises(ValueError, match=r"trainer.num_nodes=2: .*srun --nodes=2 --ntasks-per-node=") as raised:
        jobs.refuse_lonely_task(2)
    assert "\n" not in str(raised.value)
    monkeypatch.setenv("NODE_RANK", "1")  # somebody starts the nodes by hand
    assert jobs.refuse_lonely_task(2) is None
    put(monkeypatch, {"SLURM_NTASKS": "1", "SLURM_NNODES": "1"})
    monkeypatch.delenv("NODE_RANK")
    assert jobs.refuse_lonely_task(1) is None


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("n[1-2]", "n1"),
        ("n2", "n2"),
        ("gpu[007-009,012]", "gpu007"),
        ("a1,a2", "a1"),
        ("rack[3,5]-ib", "rack3-ib"),
        ("x-[1-4],y9", "x-1"),
    ],
)
def test_rank_0_is_on_the_first_host_of_the_step(nodes: str, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, TASK | {"SLURM_STEP_NODELIST": nodes, "SLURM_NODELIST": "first[1-9]"})
    assert jobs.step_host() == host


def test_lightning_is_told_of_the_step_and_not_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    # The second of two srun side by side: two tasks on the second node of a job of four on two.
    step = {"SLURM_STEP_NODELIST": "n2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    job = {"SLURM_NODELIST": "n[1-2]", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NTASKS": "2", "SLURM_NNODES": "1"}
    put(monkeypatch, TASK | step | job | {"SLURM_JOB_NAME": "interactive", "MASTER_ADDR": ""})
    monkeypatch.delenv("MASTER_ADDR")
    assert not SLURMEnvironment.detect()
    jobs.adopt_step()
    assert SLURMEnvironment.detect()
    assert SLURMEnvironment().main_address == "n2"
    SLURMEnvironment().validate_settings(num_devices=2, num_nodes=1)


def test_a_single_task_and_a_launch_of_torchrun_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for variables in ({}, TASK, SALLOC | {"RANK": "0"}):
        put(monkeypatch, variables)
        before = dict(os.environ)
        jobs.adopt_step()
        assert dict(os.environ) == before


def test_nodes_with_different_numbers_of_tasks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, SALLOC | {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "3,1"})
    with pytest.raises(ValueError, match=r"4 tasks, 3,1 by node.*--ntasks-per-node"):
        jobs.adopt_step()


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("variables", "devices", "nodes", "words"),
    [
        (
            SEVERAL | {"SLURM_STEP_NUM_NODES": "2"},
            1,
            1,
            "has 2, on 2. Give trainer.num_nodes=2 trainer.devices=1, or profile=slurm.",
        ),
        (SEVERAL | {"SLURM_STEP_NUM_NODES": "2"}, 2, 1, "this SLURM step has 2, on 2."),
        (SEVERAL | {"SLURM_STEP_NUM_NODES": "2"}, [0, 1], 2, "trainer.devices=2 are 4 processes"),
        (TASK | {"SLURM_NTASKS": "1"}, 8, 1, "trainer.devices=1, or srun --nodes=1 --ntasks-per-node=8"),
        (TORCHRUN, 1, 2, "torchrun has 4, on 2. Give trainer.num_nodes=2 trainer.devices=2."),
        (TORCHRUN, 4, 1, "torchrun has 4, on 2."),
        (SEVERAL | {"SLURM_STEP_NUM_NODES": "2"}, 1, 2, ""),
        (TORCHRUN, 2, 2, ""),
        (TORCHRUN, "auto", 1, ""),
        (TASK | {"SLURM_JOB_NAME": "bash"}, 8, 1, ""),
        ({}, 8, 1, ""),
    ],
)
def test_other_numbers_of_processes_than_there_are_are_refused(
    variables: dict[str, str], devices: object, nodes: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch, variables)
    if not words:
        jobs.check_number_of_processes(devices, nodes)
        return
    with pytest.raises(ValueError, match=r"trainer\.num_nodes=\d and trainer\.devices=\d") as caught:
        jobs.check_number_of_processes(devices, nodes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_ports_of_a_step_come_from_job_and_step_or_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, TASK)
    first = step_ports()
    assert first[0] == 25_000 + 42 * 31
    assert len(first) == 16
    assert all(25_000 <= port < 32_000 for port in first)
    monkeypatch.setenv("SLURM_STEP_ID", "1")
    assert step_ports()[0] == first[1]
    monkeypatch.setenv("SLURM_STEP_RESV_PORTS", "12000-12002")
    assert step_ports() == [12000, 12001, 12002]
    monkeypatch.setenv("PFC_PORT", "40000")
    assert step_ports() == list(range(40_000, 40_016))
    for wrong in ("x", "0", "70000"):
        monkeypatch.setenv("PFC_PORT", wrong)
        with pytest.raises(ValueError, match=f"PFC_PORT={wrong} must be the number of a port"):
            step_ports()


OPENERS = {
    "create_server",
    "listen",
    "bind",
    "TCPStore",
    "init_process_group",
    "TCPServer",
    "HTTPServer",
    "start_server",
}
KNOWN = {
    ("distributed/door.py", "create_server"): "addresses that are given, and a secret",
    ("distributed/door.py", "bind"): "whether an address is this host's; closed at once",
    ("distributed/heartbeat.py", "listen"): "a door",
    ("distributed/rendezvous.py", "TCPStore"): "torch's, on rank 0's address only; or torchrun's, as a client",
    ("distributed/rendezvous.py", "init_process_group"): "the same stores",
    ("commands/judging.py", "init_process_group"): "torchrun's store",
    ("evaluation/protocol_config.py", "bind"): "of a signature",
    ("service/server.py", "bind"): "the service, which is there for clients",
    ("service/server.py", "listen"): "the same",
}


def test_every_listening_socket_of_the_package_is_known() -> None:
    root = Path(lightning_pfc.__file__).parent
    found = {
        (path.relative_to(root).as_posix(), node.func.attr)
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in OPENERS
    }
    assert found == set(KNOWN), "a new one goes through distributed/door.py, or says here why not"


def test_hosts_have_addresses() -> None:
    with pytest.raises(socket.gaierror):
        addresses_of("no-such-host.invalid")
