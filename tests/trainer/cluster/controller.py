"""A SLURM controller with nodes of its own on this machine, and what tests ask of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[3]
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "munged", "ip", "unshare", "nsenter")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


def why_not() -> str:
    """Why a controller cannot be started here; empty if it can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed (apt-get install slurmctld slurmd slurm-client munge)"
    if os.geteuid() != 0:
        return "a SLURM controller with nodes in namespaces of their own needs root"
    words = ["unshare", "--net", "--mount", "--pid", "--fork", "ip", "link", "add", "name", "v0", "type", "veth"]
    tried = subprocess.run(words, capture_output=True, text=True, check=False)
    return f"no network namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


class Cluster:
    """A controller and its nodes, n1 to n4, which live as long as this object.

    Args:
        folder: a new one, for the cluster's files and those of its jobs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o755)  # munge insists that its socket is within everyone's reach
        script = Path(__file__).parent / "slurm.sh"
        command = ["bash", str(script), str(folder / "slurm"), "sleep", "infinity"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        lines: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            lines.append(line)
            if line.startswith("slurm is up"):
                break
        if "slurm is up" not in "".join(lines[-1:]):
            self.process.kill()
            # Daemons that this machine does not let start are no fault of what is tested here.
            pytest.skip(f"SLURM is installed, but its controller does not come up here: {''.join(lines)[-2000:]}")
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        self.inside = children.read_text().split()[0]

    def environment(self, **variables: str) -> dict[str, str]:
        """Of commands on the head."""
        ours = ("PL_", "MASTER_", "RANK", "WORLD_", "LOCAL_", "SLURM", "PFC_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        path = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
        here = {"SLURM_CONF": str(self.folder / "slurm" / "slurm.conf"), "PATH": path, "OMP_NUM_THREADS": "1"}
        return kept | here | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"} | variables

    def attempt(
        self, *command: str, folder: Path | None = None, timeout: float = 240, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the head."""
        enter = ["nsenter", "--target", self.inside, "--mount", "--net", "--uts", "--pid"]
        return subprocess.run(
            [*enter, f"--wd={folder or self.folder}", *command],
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def run(self, *command: str, folder: Path | None = None, timeout: float = 240, **variables: str) -> str:
        """The same; it must succeed."""
        done = self.attempt(*command, folder=folder, timeout=timeout, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, name: str, *words: str, **variables: str) -> Job:
        """``sbatch WORDS`` in a folder called ``name``."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        said = self.run("sbatch", "--parsable", *words, folder=folder, **variables)  # type: ignore[arg-type]
        return Job(self, folder, said.strip())

    def close(self) -> None:
        """End everything in it."""
        self.process.kill()  # unshare takes everything inside with it
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


class Job:
    """A job that was submitted from a folder of its own, with ``runs`` in it."""

    def __init__(self, cluster: Cluster, folder: Path, number: str) -> None:
        self.cluster, self.folder, self.number = cluster, folder, number
        self.run = folder / "runs" / f"slurm-{number}"

    @property
    def preempted(self) -> Path:
        """What the run keeps when it is told to end."""
        return self.run / "checkpoints" / "last-preempted.ckpt"

    def state(self) -> set[str]:
        """As squeue knows it."""
        return set(self.cluster.run("squeue", "-h", "-j", self.number, "-t", "all", "-o", "%T").split())

    def steps(self) -> list[str]:
        """Its steps that are under way, as ``scancel`` calls them."""
        return self.cluster.run("squeue", "-h", "-s", "-j", self.number, "-o", "%i").split()

    def log(self) -> str:
        """Everything that it has written."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("slurm-*.out")))

    def wait_for(self, condition: Callable[[], Any], seconds: float) -> None:
        """Until it holds; the log says why it does not."""
        wait_for(condition, seconds, self.log)

    def wait_for_stop(self, place: str | int, start: int = 0, seconds: float = 240) -> None:
        """Until a rank waits at this place (see ``gate.py``), the first time that the job runs or a later one."""
        self.wait_for((self.folder / f"at-{place}-{start}").exists, seconds)

    def end(self, seconds: float = 240) -> set[str]:
        """How it ended."""
        states = [set[str]()]

        def ended() -> bool:
            states[0] = self.state()
            return states[0] <= ENDED

        wait_for(ended, seconds, self.log, interval=0.5)  # each look takes a process
        return states[0]

    def finish(self, seconds: float = 240) -> None:
        """It must end well."""
        assert self.end(seconds) == {"COMPLETED"}, self.log()


def wait_for(condition: Callable[[], Any], seconds: float, explain: Callable[[], str], interval: float = 0.1) -> None:
    """Until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(interval)


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A cluster in a folder with a short name, which a socket's path must have; it ends with the block."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    made = Cluster(folder)
    yield made
    made.close()
    shutil.rmtree(folder, ignore_errors=True)
