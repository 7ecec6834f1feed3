"""pfc-train on a real SLURM controller: jobs, signals at every moment, requeues, preemption, salloc, sweeps."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_pfc.callbacks.csv_log import read_metrics
from lightning_pfc.checkpoint.reader import read_checkpoint
from lightning_pfc.runs.own_checkpoint import own_checkpoint
from tests.trainer.cluster.controller import REPOSITORY, Cluster, Job, running_cluster, wait_for, why_not

RECIPES = REPOSITORY / "recipes" / "slurm"
ONE = ["--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1"]
TWO = ["--nodes=2", *ONE[1:]]
WORDS = [
    "experiment=none",
    "data=synthetic",
    "data.source.num_classes=203",
    "data.source.images_per_class=10",
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
    "trainer.enable_model_summary=false",
    "callbacks.watchdog.silent_after=20",
    "logger.tensorboard=null",
    "plots=false",
]
GATE = "+callbacks.gate._target_=tests.trainer.cluster.gate.Gate"
IN_STEP = [GATE, "+callbacks.gate.stops=[20]"]
AT_START = [GATE, "+callbacks.gate.stops=[start]"]
# Each start of one job is stopped somewhere else; the last two are stopped when training is over, and not at all.
EVERYWHERE = [GATE, "+callbacks.gate.stops=[20,start,start,40]"]
EVERYWHERE += ["+logger.last._target_=tests.trainer.cluster.gate.LastLogger", "+logger.last.start=4"]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(reason := why_not()), reason=reason), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster() as made:
        yield made


def start(cluster: Cluster, name: str, nodes: list[str], *words: str, options: tuple[str, ...] = ()) -> Job:
    return cluster.submit(name, *nodes, *options, str(RECIPES / "train.sbatch"), *WORDS, *words)


@pytest.fixture(scope="module")
def jobs(cluster: Cluster) -> dict[str, Job]:
    """All submitted at once: while one of them starts, another one waits for its signal or in the queue."""
    found = {
        "alone": start(cluster, "alone", TWO),
        "warned": start(cluster, "warned", TWO, *IN_STEP),
        "preempted": start(cluster, "preempted", TWO, *IN_STEP, options=("--nodelist=n3,n4",)),
        "one": start(cluster, "one", ONE, options=("--exclude=n3,n4",)),
    }
    later = (f"--dependency=afterany:{found['preempted'].number}",)  # they would hold nodes that those above need
    retried = ("--nodelist=n4", "--export=ALL,RETRIES=1", *later)
    return found | {
        "everywhere": start(cluster, "everywhere", ONE, *EVERYWHERE, options=retried),
        "cancelled": start(cluster, "cancelled", ONE, *IN_STEP, options=(*later, "--exclude=n4")),
    }


def end(run: Path) -> tuple[dict[str, Tensor], list[float], dict[str, float]]:
    """Everything that a run has learned, the losses on the way, and what it says of itself."""
    own = own_checkpoint(run)
    assert own is not None
    checkpoint = read_checkpoint(own)
    tensors = dict(checkpoint["state_dict"])
    for number, optimizer in enumerate(checkpoint["optimizer_states"]):
        for index, state in optimizer["state"].items():
            tensors |= {f"{number}/{index}/{k}": v for k, v in state.items() if isinstance(v, Tensor)}
    losses = [row["train/loss"] for row in read_metrics(run / "metrics.csv") if "train/loss" in row]
    results = json.loads((run / "results.json").read_text())
    assert results["seconds"] > 0
    counts = {name: results[name] for name in ("samples", "steps")} | results["metrics"]
    return tensors, losses, {name: counts[name] for name in counts if "samples_per_second" not in name}


def same(one: Path, other: Path, steps: int) -> bool:
    (a, losses, results), (b, others, expected) = end(one), end(other)
    assert a.keys() == b.keys()
    assert len(losses) == steps
    assert results == expected
    return losses == others and all(torch.equal(a[name], b[name]) for name in a)


def warned(cluster: Cluster, job: Job) -> None:
    cluster.run("scancel", "--signal=USR1", job.number)


def script(cluster: Cluster, job: Job) -> None:
    cluster.run("scancel", "--signal=USR1", "--batch", job.number)  # as --signal=B: does


def died(cluster: Cluster, job: Job) -> None:
    (step,) = [word for word in job.steps() if word.rpartition(".")[2].isdecimal()]
    cluster.run("scancel", "--signal=KILL", step)


def preempted(cluster: Cluster, job: Job) -> None:
    where = cluster.run("squeue", "-h", "-j", job.number, "-o", "%N").strip()
    urgent = cluster.submit("urgent", "-purgent", "-w", where, "--exclusive", "--wrap", "sleep 0.1")
    wait_for(lambda: urgent.state() == {"COMPLETED"}, 120, lambda: cluster.run("squeue"))


@pytest.mark.parametrize("disturb", [warned, preempted])
def test_a_job_disturbed_in_training_ends_with_the_bits_of_the_one_left_alone(
    cluster: Cluster, jobs: dict[str, Job], disturb: Callable[[Cluster, Job], None]
) -> None:
    job = jobs[disturb.__name__]
    job.wait_for_stop(20)
    disturb(cluster, job)
    job.wait_for(job.preempted.exists, 240)
    job.finish()
    jobs["alone"].finish()
    text = job.log()
    assert f"slurm-{job.number}/checkpoints/last-preempted.ckpt" in text
    assert "requeued job" in text
    assert [path.name for path in (job.folder / "runs").iterdir()] == [job.run.name]
    assert same(job.run, jobs["alone"].run, 126), text
    assert not job.preempted.exists()


def test_a_job_disturbed_at_every_start_ends_with_the_bits_of_the_one_left_alone(
    cluster: Cluster, jobs: dict[str, Job]
) -> None:
    """Its process dies; it is warned, and preempted, before it trains; its script is warned; and it as it ends."""
    job = jobs["everywhere"]
    places: list[str | int] = [20, "start", "start", 40, "end"]
    for start, (disturb, place) in enumerate(zip([died, warned, preempted, script, warned], places, strict=True)):
        job.wait_for_stop(place, start)
        text = job.log()
        assert text.count("while no training is under way; requeued job") == min(max(start - 1, 0), 2), text
        assert ("last-preempted.ckpt" in text) == (start > 3), text
        disturb(cluster, job)
    job.finish()
    jobs["one"].finish()
    text = job.log()
    assert text.count("while no training is under way; requeued job") == text.count("while no training") == 3, text
    assert f"slurm-{job.number}/checkpoints/last-preempted.ckpt" in text
    assert len((job.folder / f"slurm-{job.number}.failures").read_text().splitlines()) == 1
    assert [path.name for path in (job.folder / "runs").iterdir()] == [job.run.name]
    assert same(job.run, jobs["one"].run, 252), text
    assert not job.preempted.exists()


@pytest.fixture(scope="module")
def taken(cluster: Cluster, jobs: dict[str, Job]) -> dict[str, Job]:
    """Jobs in folders that hold an older run which has ended, of other weights and 126 steps."""
    jobs["alone"].finish()
    found = {}
    for place, words in (("start", AT_START), ("step", IN_STEP)):
        older = cluster.folder / f"older-{place}"
        shutil.copytree(jobs["alone"].run, older)
        found[place] = start(cluster, f"taken {place}", ONE, *words, f"output_dir={older}")
        found[place].run = older
    return found


def test_a_requeued_job_goes_on_from_its_own_state_in_the_folder_of_an_older_run(
    cluster: Cluster, jobs: dict[str, Job], taken: dict[str, Job]
) -> None:
    job = taken["step"]
    job.wait_for_stop(20)
    cluster.run("scontrol", "requeue", job.number)
    job.wait_for(job.preempted.exists, 240)
    job.finish()
    jobs["one"].finish()
    text = job.log()
    assert f"{job.run.name}/checkpoints/last-preempted.ckpt" in text
    assert "requeued job" not in text  # the controller has done it already
    assert same(job.run, jobs["one"].run, 252), text
    assert not job.preempted.exists()


def test_a_requeued_job_without_a_state_of_its_own_refuses_that_of_an_older_run(
    cluster: Cluster, taken: dict[str, Job]
) -> None:
    job = taken["start"]
    job.wait_for_stop("start")  # before it has written whose the folder is now
    cluster.run("scontrol", "requeue", job.number)
    assert job.end() == {"FAILED"}
    assert f"{job.run} holds run" in job.log()
    assert f"it is not the run of this job (slurm-{job.number} on test, started after 1 restarts)" in job.log()
    assert json.loads((job.run / "results.json").read_text())["ranks"] == 2  # the older one's, as it was


def test_a_cancelled_job_saves_and_stays_cancelled(cluster: Cluster, jobs: dict[str, Job]) -> None:
    job = jobs["cancelled"]
    job.wait_for_stop(20)
    cluster.run("scancel", job.number)
    assert job.end(240) == {"CANCELLED"}
    job.wait_for(job.preempted.exists, 120)


def test_other_numbers_of_tasks_are_found_before_the_data_are_read(cluster: Cluster) -> None:
    words = ["trainer.num_nodes=2", "trainer.devices=1", *WORDS]
    done = cluster.attempt("srun", "--nodes=1", "--ntasks-per-node=2", "pfc-train", *words)
    lines = [line for line in done.stderr.splitlines() if line.startswith("pfc-train: ")]
    assert done.returncode != 0
    assert len(lines) == 2, done.stderr  # one a task
    assert "this SLURM step has 2, on 1. Give trainer.num_nodes=1 trainer.devices=2" in lines[0]
    assert "Traceback" not in done.stderr
    assert "203 classes" not in done.stdout + done.stderr


def test_srun_after_salloc_runs_on_all_tasks(cluster: Cluster) -> None:
    folder = cluster.folder / "salloc"
    folder.mkdir()
    words = ["srun", "pfc-train", "profile=slurm", *WORDS, "trainer.max_steps=5"]
    done = cluster.attempt("salloc", "--nodes=2", *words, folder=folder, timeout=240)
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "runs").iterdir()
    assert json.loads((run / "results.json").read_text())["ranks"] == 2


SIDE_BY_SIDE = """#!/bin/bash
srun -n2 --exact --output=0.out pfc-train profile=slurm {words} seed=0 &
srun -n2 --exact --output=1.out pfc-train profile=slurm {words} seed=1 &
wait
"""


def test_two_steps_side_by_side_in_one_job_and_node(cluster: Cluster) -> None:
    folder = cluster.folder / "side"
    folder.mkdir()
    (folder / "side.sbatch").write_text(SIDE_BY_SIDE.format(words=" ".join([*WORDS, "trainer.max_steps=5"])))
    job = cluster.submit("side", "--nodes=1", "--ntasks-per-node=4", "--nodelist=n2", "side.sbatch")
    job.finish()
    results = [json.loads(path.read_text()) for path in (folder / "runs").glob("*/results.json")]
    assert {result["seed"]: result["ranks"] for result in results} == {0: 2, 1: 2}, job.log()


def test_two_jobs_of_torchrun_at_once_on_one_first_node(cluster: Cluster) -> None:
    words = [str(RECIPES / "torchrun.sbatch"), *WORDS, "trainer.max_steps=5"]
    both = [
        cluster.submit(f"torchrun {n}", f"--nodes={n}", nodes, *TWO[2:], *words, PROCESSES_PER_NODE="1")
        for n, nodes in ((1, "--nodelist=n1"), (2, "--nodelist=n1,n2"))
    ]
    for ranks, job in enumerate(both, 1):
        job.finish()
        assert json.loads((job.run / "results.json").read_text())["ranks"] == ranks, job.log()


MEETS = """
import os
from lightning_pfc.processes import launching
from lightning_pfc.distributed.jobs import step_host, step_rank
from lightning_pfc.distributed.meeting import agree_in_step

def say(text):
    if "waiting for rank 2 (host n" in text:
        print(text, flush=True)
        os._exit(4)

if step_rank() == 2:
    os._exit(3)
if step_rank() == 0:
    launching.say, launching._FIRST_WORD = say, 1.0
agree_in_step("thing", lambda: "text", step_host())
"""


def test_a_rank_that_died_before_the_others_met_is_named(cluster: Cluster) -> None:
    done = cluster.attempt("srun", "--nodes=3", "--ntasks-per-node=1", "python", "-c", MEETS, timeout=240)
    assert "waiting for rank 2 (host n" in done.stdout, done.stderr
    assert "has ended while the ranks met to agree on a thing" in done.stderr  # so rank 1 hears that rank 0 is gone


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
    job = cluster.submit("no-srun", *TWO, "--wrap", f"pfc-train profile=slurm {' '.join(WORDS[:10])}")
    assert job.end(240) == {"FAILED"}
    assert "Put srun before the command." in job.log()
