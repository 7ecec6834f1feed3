"""One run at a time in a folder, and a job that comes back finds its own state or is told whose it is."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lightning_pfc.checkpoint.publish import newest_of_any_kind
from lightning_pfc.runs import lock
from lightning_pfc.runs.claim import RECORD, Claim, claimed, read_record
from lightning_pfc.runs.errors import ExportError
from lightning_pfc.runs.lock import LOCK
from lightning_pfc.runs.own_checkpoint import LAST, own_checkpoint
from lightning_pfc.runs.run_folder import Run
from lightning_pfc.storage.makers import this_host, this_kernel
from lightning_pfc.storage.row_files import RowFiles, rows_of_run

NAMES = ("SLURM", "TORCHELASTIC", "SUBMITIT", "RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER", "PFC_")


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(NAMES)]:
        monkeypatch.delenv(name)


def slurm(monkeypatch: pytest.MonkeyPatch, job: int, restarts: int = 0, cluster: str = "a") -> None:
    words = {"JOB_ID": job, "PROCID": 0, "NTASKS": 1, "STEP_ID": 0, "STEP_NUM_TASKS": 1, "RESTART_COUNT": restarts}
    for key, value in {**words, "CLUSTER_NAME": cluster}.items():
        monkeypatch.setenv(f"SLURM_{key}", str(value))


def start(folder: Path, goes_on: bool = False) -> Claim:
    with claimed(folder, goes_on=goes_on) as claim:
        found = read_record(folder)
        assert found is not None
        assert found["run"] == claim.run
        return claim


def checkpoint(folder: Path, run: str | None, step: int = 5) -> Path:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    path = folder / "checkpoints" / f"step{step}-{run}.ckpt"
    torch.save({"global_step": step, "loops": {}, "lightning_pfc": {"run": run}}, path)
    return path


def test_a_requeued_job_finds_its_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(monkeypatch, 42)
    first = start(tmp_path)
    slurm(monkeypatch, 42, restarts=1)
    assert start(tmp_path) == Claim(first.run, comes_back=True)
    slurm(monkeypatch, 42, restarts=2)
    assert start(tmp_path).run == first.run


def test_a_taken_folder_with_and_without_state_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = start(tmp_path)
    checkpoint(tmp_path, old.run, step=530)
    slurm(monkeypatch, 42)
    mine = start(tmp_path)
    assert mine.run != old.run
    assert not mine.comes_back
    slurm(monkeypatch, 42, restarts=1)
    assert start(tmp_path) == Claim(mine.run, comes_back=True)
    assert newest_of_any_kind([tmp_path / "checkpoints"], mine.run) is None
    own = checkpoint(tmp_path, mine.run, step=126)
    assert newest_of_any_kind([tmp_path / "checkpoints"], mine.run) == own
    assert newest_of_any_kind([tmp_path / "checkpoints"]) != own
    assert json.loads((tmp_path / "run_1.json").read_text())["run"] == old.run, "the record of the older one stays"


@pytest.mark.parametrize("case", ["same number, other cluster", "same number, first start", "no record", "other job"])
def test_the_state_of_others_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    folder = tmp_path / ("slurm-42" if case != "other job" else "out")
    if case == "no record":
        checkpoint(folder, None)
    else:
        slurm(monkeypatch, 41 if case == "other job" else 42, cluster="b" if "cluster" in case else "a")
        run = start(folder).run
    slurm(monkeypatch, 42, restarts=0 if "first" in case else 1)
    with pytest.raises(ValueError, match="it is not the run of this job") as raised, claimed(folder, goes_on=False):
        pass
    said = str(raised.value)
    assert len(said.splitlines()) == 1
    assert "slurm-42 on a" in said
    assert f"resume={folder}" in said
    assert ("no run.json" if case == "no record" else run) in said
    assert start(folder, goes_on=True).run == (run if case != "no record" else start(folder, goes_on=True).run)


def test_torchrun_with_an_id_goes_on_when_it_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "faces")
    first = start(tmp_path / "torchrun-faces")
    assert start(tmp_path / "torchrun-faces") == Claim(first.run, comes_back=True)


HOLD = """
import sys
from pathlib import Path
from lightning_pfc.runs.claim import claimed
try:
    with claimed(Path(sys.argv[1]), goes_on=False):
        print("taken", flush=True)
        sys.stdin.readline()
except ValueError as error:
    print(error, flush=True)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    where = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}
    process = hold(tmp_path, where)
    assert process.stdout is not None
    assert process.stdout.readline() == "taken\n"
    yield process
    process.kill()
    process.communicate()


def hold(folder: Path, where: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], env=where, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def test_two_jobs_in_one_folder(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    """The second is told which job on which host; when the first is killed, the folder is free at once."""
    before = (tmp_path / RECORD).read_bytes()
    with pytest.raises(ValueError, match="in use by job slurm-7") as raised, claimed(tmp_path, goes_on=False):
        pass
    assert f"on host {socket.gethostname()} (process {holder.pid})" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert (tmp_path / RECORD).read_bytes() == before, "nothing of the first is touched"
    with pytest.raises(ValueError, match="in use by"), claimed(tmp_path, goes_on=True):
        pass
    holder.kill()
    holder.wait()
    start(tmp_path)


def test_a_lock_of_another_host_that_is_not_seen_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / LOCK).write_text(json.dumps({"job": "slurm-9", "host": "node17", "pid": 1}))
    with pytest.raises(ValueError, match="in use by job slurm-9 on host node17"), claimed(tmp_path, goes_on=False):
        pass
    slurm(monkeypatch, 9)
    monkeypatch.delenv("SLURM_CLUSTER_NAME")
    start(tmp_path)  # requeued to another node
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    (tmp_path / LOCK).write_text(json.dumps({"job": "slurm-9", "host": "node17", "pid": 1}))
    old = time.time() - 1000
    os.utime(tmp_path / LOCK, (old, old))
    start(tmp_path)  # no sign of life


def lock_of(
    folder: Path,
    host: str,
    job: str | None = "slurm-9",
    pid: int = 1,
    age: float = 0.0,
    place: str = "",
    kernel: str = "",
) -> None:
    where = {"place": place or (this_host() if host == socket.gethostname() else host), "kernel": kernel or host}
    (folder / LOCK).write_text(json.dumps({"job": job, "host": host, "pid": pid} | where))
    when = time.time() - age
    os.utime(folder / LOCK, (when, when))


def refuses(monkeypatch: pytest.MonkeyPatch, number: int, times: float = float("inf")) -> None:
    """The system refuses locks with this error, until the file is another one."""
    fcntl = pytest.importorskip("fcntl")
    real = fcntl.lockf
    kept: list[int] = []

    def refuse(file: int, how: int) -> None:
        kept[:] = kept or [os.fstat(file).st_ino]
        if times == float("inf") or os.fstat(file).st_ino in kept:
            raise OSError(number, "no")
        real(file, how)

    monkeypatch.setattr(fcntl, "lockf", refuse)


def test_a_file_system_without_locks_locks_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lustre without its option flock: every start was refused, for a run on host None."""
    refuses(monkeypatch, errno.ENOSYS)
    start(tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lock_of(tmp_path, socket.gethostname(), pid=ended.pid)
    start(tmp_path)
    for host, pid in (("node17", 1), (socket.gethostname(), os.getpid())):
        lock_of(tmp_path, host, pid=pid)
        with pytest.raises(ValueError, match=f"on host {host} .*120 s without a sign of life count as its end"):
            start(tmp_path)
    lock_of(tmp_path, "node17", age=1000)
    start(tmp_path)


def test_a_host_of_the_same_name_is_another_host(tmp_path: Path) -> None:
    """Its locks are not seen here, and its process number means nothing: two runs were let into one folder."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lock_of(tmp_path, socket.gethostname(), pid=ended.pid, place="its own", kernel="its own")
    with pytest.raises(ValueError, match="120 s without a sign of life count as its end"):
        start(tmp_path)
    lock_of(tmp_path, socket.gethostname(), pid=ended.pid, place="its own", kernel="its own", age=1000)
    start(tmp_path)


def test_a_container_of_the_same_kernel_is_known_by_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock_of(tmp_path, "container", place="its own", kernel=this_kernel())
    start(tmp_path)  # the system gave us the lock, so it has ended
    refuses(monkeypatch, errno.ENOSYS)
    lock_of(tmp_path, "container", place="its own", kernel=this_kernel())
    with pytest.raises(ValueError, match="in use by job slurm-9 on host container"):
        start(tmp_path)


def test_the_lock_that_a_file_server_keeps_for_a_dead_host_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses(monkeypatch, errno.EAGAIN, times=1)
    lock_of(tmp_path, "node17", age=1000)
    with pytest.raises(ValueError, match=r"if host node17 is gone, delete .*\.run\.lock") as raised:
        start(tmp_path)
    assert "a sign of life 1000 s ago" in str(raised.value)
    (tmp_path / LOCK).rename(tmp_path / "old")  # and not deleted, so that its number is not given away again
    start(tmp_path)


def test_a_job_requeued_from_a_host_that_died_takes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(monkeypatch, 9)
    refuses(monkeypatch, errno.EAGAIN, times=1)
    first = os.open(tmp_path / LOCK, os.O_CREAT | os.O_RDWR)  # held open, so that its number is not given away again
    lock_of(tmp_path, "node17", job="slurm-9 on a", age=1000)
    start(tmp_path)
    os.close(first)


def test_a_live_lock_of_the_same_job_is_waited_for_and_then_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm(monkeypatch, 9)
    refuses(monkeypatch, errno.EAGAIN)
    lock_of(tmp_path, "node17", job="slurm-9 on a")
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s), time=time.time)
    monkeypatch.setattr(lock, "time", clock)
    with pytest.raises(ValueError, match="in use by job slurm-9 on a on host node17"):
        start(tmp_path)
    assert 150 < now[0] < 170  # longer than a server keeps the lock of a host without a sign of life


def test_a_lock_from_the_future_is_no_sign_of_life(tmp_path: Path) -> None:
    """Of a copied folder, or of a host whose clock was wrong: it locked everybody out until then."""
    lock_of(tmp_path, "node17", age=-3600)
    start(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"run": 3}', b"[" * 60_000, b"\xff\xfe"])
def test_a_record_or_a_lock_that_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RECORD).write_bytes(content)
    (tmp_path / LOCK).write_bytes(content)
    start(tmp_path)


def test_rows_in_files_are_those_of_the_run(tmp_path: Path) -> None:
    def rows(run: str | None) -> torch.Tensor:
        with rows_of_run(run):
            return RowFiles(tmp_path).tensor("weight", (3, 2), torch.float32)

    rows("a").fill_(1.0)
    assert rows("a").sum() == 6
    with pytest.raises(ValueError, match="holds the rows of run a, and this is run b"):
        rows("b")
    assert rows(None).sum() == 6
    assert rows("a").sum() == 6, "nothing was touched"


def test_a_run_in_the_folder_of_an_older_one_finds_its_own_checkpoint(tmp_path: Path) -> None:
    older = start(tmp_path)
    last = checkpoint(tmp_path, older.run, step=50).rename(tmp_path / LAST)
    assert own_checkpoint(tmp_path) == last
    newer = start(tmp_path)
    with pytest.raises(ValueError, match=f"is of run {older.run}, and run.json beside it names run {newer.run}"):
        own_checkpoint(tmp_path)
    own = checkpoint(tmp_path, newer.run, step=3).rename(tmp_path / "checkpoints" / "last-v1.ckpt")
    assert own_checkpoint(tmp_path) == own
    (tmp_path / RECORD).unlink()  # nothing says whose the folder is, as before there were ids
    assert own_checkpoint(tmp_path) == last
    last.unlink()
    assert own_checkpoint(tmp_path) is None


def test_what_a_newer_run_of_the_folder_is_made_of_is_exported(tmp_path: Path) -> None:
    older = start(tmp_path)
    checkpoint(tmp_path, older.run).rename(tmp_path / LAST)
    newer = start(tmp_path)
    for name, seed in (("config", 1), ("config_2", 2)):
        (tmp_path / f"{name}.yaml").write_text(f"seed: {seed}\n")
    with pytest.raises(ExportError, match="is of run"):
        Run(tmp_path)
    own = checkpoint(tmp_path, newer.run)
    assert Run(tmp_path).checkpoint == own
    assert Run(tmp_path).config == {"seed": 2}
