"""Names of jobs, what ranks agree on before there is a group, and runs that go on after torchrun's restart."""

from __future__ import annotations

import datetime as dt
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from lightning_pfc import train
from lightning_pfc.callbacks.csv_log import read_metrics
from lightning_pfc.checkpoint.publish import newest_of_any_kind
from lightning_pfc.distributed.jobs import job_name, refuse_lonely_task, restart_count
from lightning_pfc.distributed.rendezvous import agree_on_text, start_group_in_slurm
from tests.ranks import RankPool
from tests.trainer.test_train import NET, TINY, losses, run_folders, torchrun

NAMES = ("SLURM", "TORCHELASTIC", "SUBMITIT")


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(NAMES)]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "42", "SLURM_PROCID": "1"}, "slurm-42"),
        ({"SLURM_JOB_ID": "42", "SLURM_PROCID": "1", "SLURM_STEP_ID": "0"}, "slurm-42"),
        ({"SLURM_JOB_ID": "42", "SLURM_PROCID": "1", "SLURM_STEP_ID": "2"}, "slurm-42.2"),
        (
            {"SLURM_JOB_ID": "43", "SLURM_PROCID": "1", "SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "3"},
            "slurm-40_3",
        ),
        ({"SLURM_JOB_ID": "42", "SLURM_PROCID": "1", "SLURM_JOB_NAME": "bash"}, None),
        ({"SLURM_JOB_ID": "42"}, None),
        ({"TORCHELASTIC_RUN_ID": "none"}, None),
        ({"TORCHELASTIC_RUN_ID": "5f0c2e6e-6b54-4d8a-9f5b-0a4d8f3c1b2a"}, None),
        ({"TORCHELASTIC_RUN_ID": "faces 1"}, "torchrun-faces_1"),
    ],
)
def test_a_job_has_a_name(variables: dict[str, str], name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    assert job_name() == name


def test_restarts_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert restart_count() == 0
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert restart_count() == 2
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert restart_count() == 3


def test_a_task_without_srun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_lonely_task(1)
    for key, value in {"SLURM_JOB_ID": "4", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ValueError, match="Put srun before the command"):
        refuse_lonely_task(1)
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    refuse_lonely_task(1)


def agree(rank: int, world_size: int, job: str) -> list[str]:
    names = {"SLURM_JOB_ID": job, "SLURM_PROCID": str(rank), "SLURM_NTASKS": str(world_size), "SLURM_STEP_ID": "0"}
    os.environ.update(names)
    os.environ.pop("RANK", None)
    return [agree_on_text(f"thing {n}", lambda n=n: f"rank {rank}, {n}", "nothing", "localhost") for n in range(2)]


def test_the_tasks_of_a_slurm_step_agree(ranks: RankPool) -> None:
    found = ranks.run(3, agree, str(os.getpid()), group=False, timeout=60)
    assert found == [["rank 0, 0", "rank 0, 1"]] * 3


def start_at(rank: int, world_size: int, job: str, port: str) -> str:
    names = {"SLURM_JOB_ID": job, "SLURM_PROCID": str(rank), "SLURM_NTASKS": str(world_size), "SLURM_STEP_ID": "0"}
    os.environ.update(names | {"MASTER_ADDR": "localhost", "MASTER_PORT": port})
    os.environ.pop("RANK", None)
    try:
        start_group_in_slurm("gloo", dt.timedelta(seconds=60))
        dist.barrier()
        return "met"
    except OSError as error:
        return str(error)


def test_a_port_that_was_given_and_is_taken_is_told_to_every_rank(ranks: RankPool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for said in ranks.run(3, start_at, f"{os.getpid()}1", port, group="later", timeout=100):
            assert said.startswith(f"MASTER_PORT={port} of localhost: "), said
            assert said.endswith("Leave MASTER_PORT out, and a port that is free is found.")
    for said in ranks.run(2, start_at, f"{os.getpid()}2", "x", group="later", timeout=100):
        assert said.startswith("MASTER_PORT=x of localhost: invalid literal")
    assert ranks.run(2, start_at, f"{os.getpid()}3", port, group="later", timeout=100) == ["met", "met"]


def test_the_newest_checkpoint_is_complete_and_holds_more_than_weights(tmp_path: Path) -> None:
    def save(name: str, step: int, **more: object) -> None:
        torch.save({"global_step": step, **more}, tmp_path / name)

    assert newest_of_any_kind([tmp_path / "nothing", tmp_path]) is None
    save("a.ckpt", 5, loops={})
    save("b.ckpt", 7, loops={})
    save("c.ckpt", 9)  # weights only
    save("d.ckpt", 11, loops={})
    content = (tmp_path / "d.ckpt").read_bytes()
    (tmp_path / "d.ckpt").write_bytes(content[: len(content) // 2])
    save(".hidden.ckpt", 13, loops={})
    (tmp_path / "folder.ckpt").mkdir()
    assert newest_of_any_kind([tmp_path]) == tmp_path / "b.ckpt"


DIES = """
import os, signal
from lightning.pytorch.callbacks import Callback

OF = {("0", 25): signal.SIGKILL, ("1", 55): signal.SIGUSR1}

class Dies(Callback):
    def on_train_batch_end(self, trainer, *args):
        number = OF.get((os.environ["TORCHELASTIC_RESTART_COUNT"], trainer.global_step))
        if number is not None and trainer.global_rank == 1:
            os.kill(os.getpid(), number)
"""


@pytest.mark.slow
def test_torchrun_restarts_a_run_where_it_was(tmp_path: Path) -> None:
    """Twice: after a rank was killed, and after one was told to end and had kept its state."""
    (tmp_path / "dies.py").write_text(DIES)
    words = [*TINY, *NET, "trainer.devices=2", "trainer.max_epochs=4", "plots=false", "test=false"]
    words += ["data.batch_size=8", "+callbacks.checkpoint.every_n_train_steps=10", "+callbacks.dies._target_=dies.Dies"]
    where = os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)])
    command = ["--max-restarts=2", "-m", "lightning_pfc.commands.train"]
    answer = torchrun(tmp_path, *command, *words, PYTHONPATH=where)
    assert answer.returncode == 0, answer.stderr
    (folder,) = run_folders(tmp_path)  # one folder for both ranks and all starts
    results = json.loads((folder / "results.json").read_text())
    assert (results["steps"], results["ranks"]) == (80, 2)
    assert len(losses(folder)) == 80
    found = [line.rsplit("/", 1)[-1] for line in answer.stderr.splitlines() if "it goes on from" in line]
    assert found == ["last.ckpt", "last-preempted.ckpt"]
    assert len({row["step"] for row in read_metrics(folder / "metrics.csv") if "train/loss" in row}) == 80


@pytest.fixture
def own_group(no_leaked_process_group: None) -> Iterator[None]:
    """The strategy makes a group of one process, which a Trainer leaves behind."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_resumed_in_mid_epoch_sees_the_rest_of_the_epoch(tmp_path: Path, own_group: None, workers: int) -> None:
    # The scheduler asks the trainer for the number of steps, which has it set up the data before it reads a checkpoint.
    words = [*TINY, *NET, "plots=false", "test=false", "logger=csv", "trainer.limit_val_batches=0"]
    words += [f"data.num_workers={workers}", "+callbacks.checkpoint.every_n_train_steps=7", "head.sample_rate=0.5"]
    words += ["callbacks.checkpoint.save_top_k=-1"]
    train(*words, f"output_dir={tmp_path / 'whole'}")
    (seventh,) = (tmp_path / "whole" / "checkpoints").glob("*step0000007.ckpt")
    train(*words, f"output_dir={tmp_path / 'resumed'}", f"ckpt_path={seventh}")
    assert len(losses(tmp_path / "whole")) == 40
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")[7:]
