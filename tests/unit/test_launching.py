"""Processes of one run that start together: who waits says so, and who was started by rank 0 ends with it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_pfc.processes import launching
from lightning_pfc.strategies.launcher import ScriptLauncher

# The module by itself: the package around it takes longer to import.
CHILD = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("launching", sys.argv[1])
launching = importlib.util.module_from_spec(spec)
spec.loader.exec_module(launching)
launching.follow_rank_0()
{body}
print("ready", flush=True)
time.sleep(300)
"""
PARENT = """
import os, subprocess, sys
variables = {**os.environ, "PFC_RANK_0": str(os.getpid()), "LOCAL_RANK": "1"}
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]], env=variables)
print(child.pid, flush=True)
child.wait()
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize(("body", "ends"), [("", True), ("launching.all_are_there(); time.sleep(1.2)", False)])
def test_a_process_ends_with_rank_0_until_all_have_met(tmp_path: Path, body: str, ends: bool) -> None:
    said = tmp_path / "stderr"
    with said.open("w") as stderr:
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, CHILD.format(body=body), launching.__file__],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    parent.wait()
    if ends:
        wait_for(lambda: not is_running(child))
        words = f"rank 1: rank 0 (process {parent.pid}), which has started this process, has died while it was starting"
        assert words in said.read_text()
    else:  # from then on the group and the watchdog notice it
        time.sleep(1.5)
        assert is_running(child)
        os.kill(child, 9)
    parent.stdout.close()


def test_a_process_that_nobody_has_started_follows_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(launching.threading, "Thread", lambda **kwargs: started.append(kwargs))
    monkeypatch.delenv(launching.RANK_0, raising=False)
    launching.follow_rank_0()
    monkeypatch.setenv(launching.RANK_0, "no number")
    launching.follow_rank_0()
    assert not started


def test_the_variable_is_there_while_processes_are_started_and_gone_after(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []
    base = ScriptLauncher.__mro__[1]
    monkeypatch.setattr(base, "_call_children_scripts", lambda self: seen.append(os.environ.get(launching.RANK_0)))
    monkeypatch.delenv(launching.RANK_0, raising=False)
    ScriptLauncher(None, 2, 1)._call_children_scripts()  # type: ignore[arg-type]
    assert seen == [str(os.getpid())]
    assert launching.RANK_0 not in os.environ


def test_who_waits_says_so_ever_more_seldom(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    now = 1000.0

    def over(seconds: float) -> bool:
        nonlocal now
        now += seconds
        return now > 1200.0

    launching.tell_while_waiting("waiting for rank 0 at n1, port 25000", over, lambda: now)
    said = [f"rank 3: waiting for rank 0 at n1, port 25000, for {seconds} s so far." for seconds in (10, 30, 70, 150)]
    assert capfd.readouterr().err.splitlines() == said


def test_nothing_is_said_once_the_wait_is_over(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "_FIRST_WORD", 0.01)
    with launching.saying_what_it_waits_for("waiting"):
        wait_for(lambda: "waiting, for 0 s so far." in capfd.readouterr().err)
        (thread,) = [each for each in threading.enumerate() if each.name == "waiting"]
    thread.join(60.0)
    assert not thread.is_alive()


def test_who_waits_briefly_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with launching.saying_what_it_waits_for("waiting"):
        pass
    assert capfd.readouterr().err == ""
