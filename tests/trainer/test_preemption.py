"""A signal on any rank, at any moment: all leave after the same step, and a resumed run ends with the same bits."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn

from lightning_pfc.callbacks import Preempted, Preemption
from tests.ranks import RankPool
from tests.trainer.world import Resumable, TheirModule, make_loader, make_trainer

Batch = tuple[Tensor, Tensor]


class Signalled(TheirModule):
    """Gets a signal on one rank, in one step; the other rank is late by then, and inside a collective or not."""

    def __init__(self, rank: int, step: int, number: int, late: tuple[int, float] = (0, 0.0), **options: Any) -> None:
        super().__init__(optimizer=torch.optim.SGD, momentum=0.9, **options)
        self.where, self.number, self.lateness = (rank, step), number, late

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        if self.global_rank == self.lateness[0]:
            time.sleep(self.lateness[1])
        if (self.global_rank, self.trainer.global_step) == self.where and self.number:
            os.kill(os.getpid(), self.number)
        return super().training_step(batch, batch_idx)


class Average(Callback):
    """What others do at the end of a step must be in the checkpoint, in whatever order callbacks are given."""

    def __init__(self) -> None:
        self.steps = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self.steps += 1

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


def fit(rank: int, world_size: int, folder: str, model: L.LightningModule, **options: Any) -> tuple[Any, dict, int]:
    average = Average()
    keeper = ModelCheckpoint(folder, filename="{epoch}", save_top_k=1)
    trainer = make_trainer(
        rank,
        world_size,
        max_epochs=2,
        enable_checkpointing=True,
        callbacks=[Preemption(), average, keeper],
        **options,
    )
    how: Any = None
    try:
        trainer.fit(model, Resumable(rank, world_size), ckpt_path="last")
    except Preempted as preempted:
        how = (preempted.code, str(preempted.path), trainer.global_step)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    return how, {name: value.clone() for name, value in model.state_dict().items()}, average.steps


def run(rank: int, world_size: int, folder: str, where: tuple[int, int], number: int, late: Any, every: int) -> Any:
    options: dict[str, Any] = {"accumulate_grad_batches": every}
    left_alone = fit(rank, world_size, f"{folder}/alone", Signalled(-1, 0, 0), **options)
    stopped = fit(rank, world_size, f"{folder}/stopped", Signalled(*where, number, late), **options)
    there = sorted(path.name for path in Path(folder, "stopped").iterdir())
    torch.manual_seed(99)
    went_on = fit(rank, world_size, f"{folder}/stopped", Signalled(-1, 0, 0), **options)
    same = all(torch.equal(left_alone[1][name], went_on[1][name]) for name in left_alone[1])
    left = sorted(path.name for path in Path(folder, "stopped").iterdir())
    return left_alone[0], stopped[0], there, went_on[0], same, (left_alone[2], went_on[2]), left


@pytest.mark.parametrize(
    ("world_size", "where", "number", "late", "every", "leaves_at"),
    [
        (2, (1, 3), signal.SIGTERM, (0, 0.1), 1, 4),
        (2, (0, 3), signal.SIGUSR1, (1, 0.1), 1, 4),
        (2, (0, 7), signal.SIGUSR1, (0, 0.1), 1, 8),
        (2, (1, 1), signal.SIGTERM, (0, 0.0), 2, 2),  # in the middle of a step of two batches
        (1, (0, 3), signal.SIGTERM, (0, 0.0), 1, 4),
    ],
)
def test_all_leave_after_the_same_step_and_go_on_with_the_same_bits(
    ranks: RankPool, tmp_path: Path, world_size: int, where: Any, number: int, late: Any, every: int, leaves_at: int
) -> None:
    results = ranks.run(world_size, run, str(tmp_path), where, number, late, every, timeout=60)
    for alone, stopped, there, went_on, same, (steps, resumed_steps), _ in results:
        assert alone is None
        assert stopped == (128 + number, str(tmp_path / "stopped" / "last-preempted.ckpt"), leaves_at)
        assert "last-preempted.ckpt" in there
        assert went_on is None
        assert same
        assert steps == resumed_steps
    assert "last-preempted.ckpt" not in results[0][-1]  # a newer one is there, and rank 0 has removed it


class NoHead(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.global_rank == 1 and batch_idx == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def stock(rank: int, world_size: int, folder: str, every: int) -> Any:
    callback = Preemption(dirpath=folder, every_n_batches=every)
    trainer = make_trainer(rank, world_size, strategy="ddp", callbacks=[callback])
    with pytest.raises(Preempted) as caught:
        trainer.fit(NoHead(), make_loader(rank, world_size))
    return caught.value.code, trainer.global_step


@pytest.mark.parametrize(("every", "step"), [(1, 3), (4, 4)])
def test_other_strategies_compare_as_often_as_they_are_told(
    ranks: RankPool, tmp_path: Path, every: int, step: int
) -> None:
    assert ranks.run(2, stock, str(tmp_path), every, timeout=60) == [(143, step)] * 2
    assert (tmp_path / "last-preempted.ckpt").is_file()


class Elsewhere(Signalled):
    """Gets the signal beside the steps."""

    def __init__(self, place: str, number: int) -> None:
        super().__init__(-1, 0, 0)
        self.place, self.signal = place, number

    def _at(self, place: str) -> None:
        if place == self.place:
            os.kill(os.getpid(), self.signal)

    def on_fit_start(self) -> None:
        self._at("fit start")

    def on_train_start(self) -> None:
        self._at("train start")

    def on_train_end(self) -> None:
        self._at("train end")


def in_slurm(rank: int, world_size: int, folder: str, number: int, status: int, place: str = "") -> Any:
    command = Path(folder, f"bin-{rank}", "scontrol")
    command.parent.mkdir()
    shown = "JobState=RUNNING PreemptTime=2026-01-01T00:00:00" if "preempted" in folder else "JobState=COMPLETING"
    command.write_text(
        f'#!/bin/sh\n[ $1 = show ] && echo {shown} && exit\necho "$@" >> {folder}/calls-{rank}\nexit {status}\n'
    )
    command.chmod(0o755)
    os.environ.update(SLURM_PROCID=str(rank), SLURM_JOB_ID="77", SLURM_ARRAY_JOB_ID="70", SLURM_ARRAY_TASK_ID="3")
    os.environ["PATH"] = f"{command.parent}:{os.environ['PATH']}"
    os.environ.pop("SLURM_NTASKS", None)
    return fit(rank, world_size, folder, Elsewhere(place, number) if place else Signalled(1, 2, number))[0]


@pytest.mark.parametrize(("number", "name"), [(signal.SIGUSR1, "warned"), (signal.SIGTERM, "preempted")])
def test_a_job_is_requeued_once(ranks: RankPool, tmp_path: Path, number: int, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    outcomes = ranks.outcomes(2, in_slurm, str(folder), number, 0, timeout=60)
    assert ["exit code 0" in (outcome.error or "") for outcome in outcomes] == [True, True]
    assert (folder / "calls-0").read_text() == "requeue 70_3\n"
    assert not (folder / "calls-1").exists()
    assert (folder / "last-preempted.ckpt").is_dir()


def test_sigterm_or_a_controller_that_refuses_do_not(ranks: RankPool, tmp_path: Path) -> None:
    for name, number, status in (("ended", signal.SIGTERM, 0), ("refused", signal.SIGUSR1, 1)):
        folder = tmp_path / name
        folder.mkdir()
        results = ranks.run(2, in_slurm, str(folder), number, status, timeout=60)
        assert [result[0] for result in results] == [128 + number] * 2
        assert (folder / "calls-0").exists() == (name == "refused")


@pytest.mark.parametrize("place", ["fit start", "train start"])
@pytest.mark.parametrize(("number", "name"), [(signal.SIGUSR1, "warned"), (signal.SIGTERM, "preempted")])
def test_before_the_first_step_a_job_leaves_at_once(
    ranks: RankPool, tmp_path: Path, number: int, name: str, place: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    outcomes = ranks.outcomes(1, in_slurm, str(folder), number, 0, place, timeout=60)
    assert "exit code 0" in (outcomes[0].error or "")
    assert (folder / "calls-0").read_text() == "requeue 70_3\n"
    assert not list(folder.glob("*.ckpt"))


def late(rank: int, world_size: int, folder: str) -> list[int]:
    got: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
    try:
        model = Elsewhere("train end", signal.SIGUSR1)
        trainer = make_trainer(rank, world_size, max_epochs=1, callbacks=[Preemption(dirpath=folder)])
        trainer.fit(model, Resumable(rank, world_size))
    finally:
        signal.signal(signal.SIGUSR1, before)
    return got


def test_a_signal_after_the_last_step_goes_to_whoever_had_it_before(ranks: RankPool, tmp_path: Path) -> None:
    assert ranks.run(1, late, str(tmp_path), timeout=60) == [[signal.SIGUSR1]]


@pytest.mark.parametrize("name", ["SIGKILL", "SIGNOTHING"])
def test_signals_that_do_not_work_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Preemption(signals=[name])
