"""pfc-train on a real SLURM controller with two nodes: jobs, requeues, preemption, sweeps through submitit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_pfc.callbacks.csv_log import read_metrics
from lightning_pfc.checkpoint.surgery import read_checkpoint

REPOSITORY = Path(__file__).parents[2]
RECIPES = REPOSITORY / "recipes" / "slurm"
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "munged", "ip", "unshare", "nsenter")
PLAIN = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1"]
WORDS = [
    "experiment=none",
    "data=synthetic",
    "data.source.num_classes=203",
    "data.source.images_per_class=40",
    "data.source.image_size=8",
    "data.source.test_classes=20",
    "data.source.impostors=500",
    "data.batch_size=16",
    "backbone.embedding_dim=8",
    "+backbone.options.widths=[8,8]",
    "+backbone.options.depths=[0,0]",
    "head.sample_rate=0.3",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "trainer.max_epochs=2",
    "trainer.enable_progress_bar=false",
    "plots=false",
]

missing = [name for name in PROGRAMS if shutil.which(name) is None]
reason = f"{', '.join(missing)} not installed (apt-get install slurmctld slurmd slurm-client munge)" if missing else ""
if not reason and os.geteuid() != 0:
    reason = "a SLURM controller with two nodes in namespaces of their own needs root"
if not reason:
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "ip", "link", "add", "name", "v0", "type", "veth"],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode:
        reason = f"no network namespaces here: {tried.stderr.strip()}"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(reason), reason=reason), pytest.mark.timeout(600)]


class Cluster:
    """A controller and two nodes that live as long as this object."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o755)  # munge insists that its socket is within everyone's reach
        script = Path(__file__).parent / "cluster" / "slurm.sh"
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

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PL_", "MASTER_", "RANK", "WORLD_", "LOCAL_"))}
        path = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
        here = {"SLURM_CONF": str(self.folder / "slurm" / "slurm.conf"), "PATH": path, "OMP_NUM_THREADS": "1"}
        return kept | here | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}

    def run(self, *command: str, folder: Path | None = None, timeout: float = 60) -> str:
        enter = ["nsenter", "--target", self.inside, "--mount", "--net", "--uts", "--pid"]
        done = subprocess.run(
            [*enter, f"--wd={folder or self.folder}", *command],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, folder: Path, *words: str) -> str:
        folder.mkdir(exist_ok=True)
        return self.run("sbatch", "--parsable", *words, folder=folder).strip()

    def state(self, job: str) -> set[str]:
        return set(self.run("squeue", "-h", "-j", job, "-t", "all", "-o", "%T").split())

    def finish(self, job: str, folder: Path, seconds: float = 240) -> None:
        wait_for(lambda: self.state(job) <= {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"}, seconds, log(folder))
        assert self.state(job) == {"COMPLETED"}, log(folder)()

    def close(self) -> None:
        self.process.kill()  # unshare takes everything inside with it
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    made = Cluster(folder)
    yield made
    made.close()
    shutil.rmtree(folder, ignore_errors=True)


def log(folder: Path) -> Callable[[], str]:
    return lambda: "\n".join(path.read_text() for path in sorted(folder.glob("slurm-*.out")))


def wait_for(condition: Callable[[], Any], seconds: float, explain: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.2)


def steps(run: Path) -> int:
    path = run / "metrics.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def end(run: Path) -> tuple[dict[str, Tensor], list[float]]:
    """Everything that a run has learned, and the losses on the way."""
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    tensors = dict(checkpoint["state_dict"])
    for number, optimizer in enumerate(checkpoint["optimizer_states"]):
        for index, state in optimizer["state"].items():
            tensors |= {f"{number}/{index}/{k}": v for k, v in state.items() if isinstance(v, Tensor)}
    return tensors, [row["train/loss"] for row in read_metrics(run / "metrics.csv") if "train/loss" in row]


def same(one: Path, other: Path) -> bool:
    (a, losses), (b, others) = end(one), end(other)
    assert a.keys() == b.keys()
    assert len(losses) == 2 * (203 * 40 // 32)
    return losses == others and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def left_alone(cluster: Cluster) -> Path:
    """The run that nobody disturbs."""
    folder = cluster.folder / "alone"
    job = cluster.submit(folder, *PLAIN, str(RECIPES / "train.sbatch"), *WORDS)
    cluster.finish(job, folder)
    (run,) = (folder / "runs").iterdir()
    assert run.name == f"slurm-{job}"
    results = json.loads((run / "results.json").read_text())
    assert results["ranks"] == 2
    assert "test/accuracy" in results
    return run


def requeue(cluster: Cluster, job: str) -> None:
    cluster.run("scontrol", "requeue", job)


def warn(cluster: Cluster, job: str) -> None:
    cluster.run("scancel", "--signal=USR1", job)


def preempt(cluster: Cluster, job: str) -> None:
    urgent = cluster.submit(cluster.folder / "urgent", "-purgent", "-N2", "--exclusive", "--wrap", "sleep 1")
    wait_for(lambda: cluster.state(urgent) == {"COMPLETED"}, 120, lambda: cluster.run("squeue"))


@pytest.mark.parametrize("disturb", [requeue, warn, preempt])
def test_a_disturbed_job_ends_with_the_bits_of_the_one_left_alone(
    cluster: Cluster, left_alone: Path, disturb: Callable[[Cluster, str], None]
) -> None:
    folder = cluster.folder / disturb.__name__
    job = cluster.submit(folder, *PLAIN, str(RECIPES / "train.sbatch"), *WORDS)
    run = folder / "runs" / f"slurm-{job}"
    wait_for(lambda: steps(run) >= 50, 120, log(folder))
    disturb(cluster, job)
    wait_for(lambda: list((run / "checkpoints").glob("last-preempted.ckpt")), 60, log(folder))
    cluster.finish(job, folder)
    text = log(folder)()
    assert "it goes on from" in text
    assert f"slurm-{job}/checkpoints/last-preempted.ckpt" in text
    assert ("requeued job" in text) == (disturb is not requeue)  # there the controller has done it already
    assert [path.name for path in (folder / "runs").iterdir()] == [run.name]
    assert same(run, left_alone), text
    assert not (run / "checkpoints" / "last-preempted.ckpt").exists()


def test_a_cancelled_job_saves_and_stays_cancelled(cluster: Cluster) -> None:
    folder = cluster.folder / "cancelled"
    job = cluster.submit(folder, *PLAIN, str(RECIPES / "train.sbatch"), *WORDS)
    run = folder / "runs" / f"slurm-{job}"
    wait_for(lambda: steps(run) >= 50, 120, log(folder))
    cluster.run("scancel", job)
    wait_for(lambda: cluster.state(job) == {"CANCELLED"}, 60, log(folder))
    wait_for(lambda: list((run / "checkpoints").glob("last-preempted.ckpt")), 30, log(folder))


def test_a_sweep_through_submitit_over_two_nodes(cluster: Cluster) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra `slurm` is not installed")
    folder = cluster.folder / "sweep"
    folder.mkdir()
    words = [*WORDS, "trainer.num_nodes=2", "trainer.max_epochs=1", "hydra/launcher=slurm", "hydra.sweep.dir=out"]
    command = [sys.executable, "-m", "lightning_pfc.commands.train", "-m", "seed=0,1", *words]
    text = cluster.run("timeout", "-s", "KILL", "280", *command, folder=folder, timeout=300)
    results = [json.loads((folder / "out" / name / "results.json").read_text()) for name in "01"]
    assert [result["seed"] for result in results] == [0, 1], text
    assert all(result["ranks"] == 2 for result in results)


def test_a_batch_script_without_srun_is_told_so(cluster: Cluster) -> None:
    folder = cluster.folder / "no-srun"
    job = cluster.submit(folder, *PLAIN, "--wrap", f"pfc-train profile=slurm {' '.join(WORDS[:10])}")
    wait_for(lambda: cluster.state(job) == {"FAILED"}, 60, log(folder))
    assert "Put srun before the command." in log(folder)()
