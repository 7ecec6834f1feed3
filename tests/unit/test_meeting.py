"""The tasks of a SLURM step meet: who has not come is named to all, and so is a port that is taken."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightning_pfc.distributed import jobs, meeting, ports
from lightning_pfc.distributed.door import enter
from lightning_pfc.distributed.lines import Line


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


class Step:
    """A step of three tasks, of which this process plays some; its clock can be put forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.later = 0.0
        self.waits_for: dict[str, Callable[[], str]] = {}
        self.ended: dict[int, object] = {}
        clock = SimpleNamespace(monotonic=lambda: time.monotonic() + self.later, sleep=time.sleep)
        monkeypatch.setattr(meeting, "time", clock)
        monkeypatch.setattr(meeting, "_EVERY", 0.05)
        monkeypatch.setattr(meeting, "saying_what_it_waits_for", self._saying)
        monkeypatch.setattr(meeting, "host_of_rank", lambda rank: f"n{rank + 1}")
        monkeypatch.setattr(meeting, "_last_port", [])
        with socket.create_server(("127.0.0.1", 0)) as probe:
            first = int(probe.getsockname()[1])
        self.place = meeting._Place("folder", "127.0.0.1", "secret", [first + n for n in range(16)])

    def _saying(self, text: Callable[[], str]) -> contextlib.AbstractContextManager[None]:
        self.waits_for[threading.current_thread().name] = text
        return contextlib.nullcontext()

    def start(self, rank: int) -> threading.Thread:
        def work() -> None:
            try:
                self.ended[rank] = meeting._ask(self.place, rank) if rank else meeting._tell("mine", self.place, [1, 2])
            except OSError as error:
                self.ended[rank] = error

        thread = threading.Thread(target=work, name=f"rank {rank}", daemon=True)
        thread.start()
        return thread

    def says(self, rank: int) -> str:
        """What it would say that it waits for."""
        found = self.waits_for.get(f"rank {rank}")
        return found() if found else ""


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Step:
    return Step(monkeypatch)


def test_everybody_knows_who_has_not_come(step: Step) -> None:
    threads = [step.start(rank) for rank in (0, 1)]
    wait_for(lambda: "waiting for rank 2 (host n3)" in step.says(0))
    wait_for(lambda: "waiting for rank 2 (host n3)" in step.says(1))
    assert not step.ended
    step.later = 301.0
    for thread in threads:
        thread.join(60.0)
    for rank in (0, 1):
        assert isinstance(step.ended[rank], TimeoutError)
        assert str(step.ended[rank]).startswith("rank 2 (host n3) did not come within 0:05:00 to agree on a folder")


def test_all_go_on_together_when_the_last_one_has_come(step: Step) -> None:
    threads = [step.start(rank) for rank in (0, 1)]
    wait_for(lambda: "rank 2" in step.says(1))
    threads.append(step.start(2))
    for thread in threads:
        thread.join(60.0)
    assert step.ended == {0: "mine", 1: "mine", 2: "mine"}


def test_who_has_come_and_ended_is_named(step: Step) -> None:
    thread = step.start(0)
    wait_for(lambda: "waiting for" in step.says(0))
    port = int(step.says(0).rsplit(" ", 1)[1])
    line = enter("127.0.0.1", port, "secret", 1, seconds=60.0)
    line.close()
    thread.join(60.0)
    assert str(step.ended[0]) == "rank 1 (host n2) has ended while the ranks met to agree on a folder."


def test_the_end_of_rank_0_is_known_at_once(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(door: object, told: dict[int, Line], place: object) -> None:
        wait_for(lambda: told)
        told[1].close()  # as the system does
        raise OSError("died")

    monkeypatch.setattr(meeting, "_wait_for_all", dies)
    threads = [step.start(rank) for rank in (0, 1)]
    for thread in threads:
        thread.join(60.0)
    assert str(step.ended[1]) == "rank 0 (127.0.0.1) has ended while the ranks met to agree on a folder."


def test_a_port_that_a_stranger_has_is_said_and_not_tried_again(step: Step, capfd: pytest.CaptureFixture[str]) -> None:
    first = step.place.ports[0]
    with socket.create_server(("127.0.0.1", first)):
        for thread in [step.start(rank) for rank in (0, 1, 2)]:
            thread.join(60.0)
    assert step.ended == {0: "mine", 1: "mine", 2: "mine"}
    (port,) = meeting._last_port
    assert port in step.place.ports[1:]
    assert (
        f"port {first} of 127.0.0.1 is taken by another program; port {port} takes its place" in capfd.readouterr().err
    )


def test_many_are_named_by_eight(step: Step) -> None:
    assert meeting._named(range(7, 71)).endswith("rank 14 (host n15) and 56 others")
    assert meeting._named([4, 2]) == "rank 2 (host n3), rank 4 (host n5)"


@pytest.mark.parametrize(
    ("distribution", "hosts"),
    [("", ["n1", "n1", "n2", "n2"]), ("block", ["n1", "n1", "n2", "n2"]), ("cyclic", [None] * 4)],
)
def test_the_host_of_a_rank(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, distribution: str, hosts: list[str | None]
) -> None:
    (tmp_path / "scontrol").write_text('#!/bin/sh\n[ "$*" = "show hostnames n[1-2]" ] && printf "n1\\nn2\\n"\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n[1-2]")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.delenv("SLURM_DISTRIBUTION", raising=False)
    if distribution:
        monkeypatch.setenv("SLURM_DISTRIBUTION", distribution)
    jobs._hosts.cache_clear()
    assert [jobs.host_of_rank(rank) for rank in range(4)] == hosts
    jobs._hosts.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert jobs.host_of_rank(0) is None
    jobs._hosts.cache_clear()


def test_neighbours_never_choose_the_same_port_for_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each looks seconds before its torchrun opens the port; with steps of one, 5 and 6 both chose 20006."""
    monkeypatch.delenv("PFC_PORT", raising=False)
    tried = []
    for job in range(4_990, 5_110):
        monkeypatch.setenv("SLURM_JOB_ID", str(job))
        tried.append(ports.torchrun_ports()[:3])
    assert len({port for each in tried for port in each}) == 3 * len(tried)
    assert all(20_000 <= port < 25_000 for each in tried for port in each)


def test_the_port_for_torchrun_is_a_free_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with socket.create_server(("127.0.0.1", 0)) as taken:  # an address of this host's, and not all of them
        first = int(taken.getsockname()[1])
        monkeypatch.setenv("PFC_PORT", str(first))
        assert ports.main() == 0
    said = capsys.readouterr()
    assert first < int(said.out) < first + 16
    assert said.err == f"port {first} is taken by another program; torchrun meets at port {said.out.strip()}\n"
    monkeypatch.setenv("PFC_PORT", "x")
    assert ports.main() == 1
    assert "PFC_PORT=x must be the number of a port" in capsys.readouterr().err
