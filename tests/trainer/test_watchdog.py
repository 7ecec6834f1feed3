"""Ranks that die or hang: the others end in bounded time, and say which rank it was and where it was."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_pfc.callbacks import Watchdog
from lightning_pfc.distributed.heartbeat import Kind
from tests.ranks import RankPool
from tests.trainer.test_preemption import NoHead
from tests.trainer.world import TheirModule, make_loader, make_trainer

Batch = tuple[Tensor, Tensor]


class Notes(Watchdog):
    """Leaves what it has found in a file."""

    def __init__(self, folder: str, rank: int, **options: Any) -> None:
        super().__init__(**options)
        self.path = Path(folder) / f"verdict-{rank}"

    def _verdict(self, kind: Kind, text: str) -> None:
        self.path.write_text(f"{kind}: {text}")
        super()._verdict(kind, text)


class Hook(torch.autograd.Function):
    """Does something in the backward pass of the backbone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, action: Callable[[], None]) -> Tensor:
        ctx.action = action
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        ctx.action()
        return gradient, None


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def freeze() -> None:
    subprocess.Popen(["sh", "-c", f"sleep 8; kill -KILL {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)


def hang() -> None:
    time.sleep(600)


def fail() -> None:
    raise KeyError("a part of the backbone")


class InBackward(NoHead):
    """Without a head there is no message of the strategy: the others wait in DDP's all-reduce."""

    def __init__(self, action: Callable[[], None]) -> None:
        super().__init__()
        self.action = action

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.layer(batch[0]).square().mean()
        return Hook.apply(loss, self.action) if self.global_rank == 1 and batch_idx == 2 else loss


class Stuck:
    """A data loader that never returns its fourth batch on rank 1."""

    def __init__(self, rank: int, world_size: int, action: Callable[[], None]) -> None:
        self.rank, self.batches, self.action = rank, list(make_loader(rank, world_size)), action

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        for number, batch in enumerate(self.batches):
            if self.rank == 1 and number == 3:
                self.action()
            yield batch


def run(rank: int, world_size: int, folder: str, case: str) -> None:
    stalled_after, silent_after = (4.0 if "hangs" in case else 60.0), (2.5 if case == "frozen" else 60.0)
    notes = Notes(folder, rank, stalled_after=stalled_after, silent_after=silent_after, patience=1.0, interval=0.2)
    trainer = make_trainer(rank, world_size, callbacks=[notes])
    actions = {"killed": die, "frozen": freeze, "hangs in backward": hang, "raises in backward": fail}

    def act() -> None:
        while not (notes._heartbeat and notes._heartbeat.connected):  # who has not come yet cannot be missed
            time.sleep(0.02)
        (Path(folder) / "acted").write_text(str(time.monotonic()))
        actions.get(case, hang)()

    if case == "hangs in loading":
        trainer.fit(TheirModule(), Stuck(rank, world_size, act))
    else:
        trainer.fit(InBackward(act), make_loader(rank, world_size))


@pytest.mark.parametrize(
    ("case", "kind", "words"),
    [
        ("killed", "died", ["rank 1 (host", "has died"]),
        ("frozen", "silent", ["no sign of rank 1 (host", "for 2.5 s"]),
        ("hangs in loading", "stalled", ["rank 1 (host", "loading the next batch, after 3 batches", "hang", "rank 0"]),
        ("hangs in backward", "stalled", ["rank 1", "backward of batch 3", "hang"]),
        ("raises in backward", "failed", ["rank 1: KeyError: 'a part of the backbone'"]),
    ],
)
def test_the_others_end_and_name_it(ranks: RankPool, tmp_path: Path, case: str, kind: str, words: list[str]) -> None:
    outcomes = ranks.outcomes(2, run, str(tmp_path), case, timeout=100)
    assert outcomes[0].error is not None  # ended by the watchdog, or raised by itself
    assert time.monotonic() - float((tmp_path / "acted").read_text()) < 60  # not counting how processes start
    verdict = tmp_path / "verdict-0"
    assert verdict.exists(), outcomes[0].error
    text = verdict.read_text()
    assert text.startswith(kind)
    for word in words:
        assert word in text, text


def finish(rank: int, world_size: int, folder: str) -> int:
    watchdog = Notes(folder, rank, stalled_after=4.0, silent_after=60.0, patience=1.0, interval=0.1)
    trainer = make_trainer(rank, world_size, callbacks=[watchdog], max_epochs=3)
    loader = make_loader(rank, world_size)
    trainer.fit(Slow(), loader, loader)
    trainer.validate(Slow(), loader, verbose=False)
    return trainer.global_step


class Slow(TheirModule):
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        time.sleep(0.25 * self.global_rank)  # longer in all than a stall, and much shorter each
        return super().training_step(batch, batch_idx)


def test_a_run_that_is_only_slow_is_left_alone(ranks: RankPool, tmp_path: Path) -> None:
    assert ranks.run(2, finish, str(tmp_path), timeout=60) == [18, 18]
    assert not list(tmp_path.iterdir())


class Look(Callback):
    """At the port of the heartbeat, once all ranks have come."""

    def __init__(self, watchdog: Watchdog) -> None:
        self.watchdog = watchdog
        self.seen: list[Any] = []

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        beat = self.watchdog._heartbeat
        assert beat is not None
        self.seen.append(beat.problem)
        if beat.door is not None:
            assert beat.door.wait(60.0)
            self.seen += [sorted(beat.door.addresses), can_connect(beat.door.port)]


def can_connect(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2.0).close()
    except OSError:
        return False
    return True


def watched(rank: int, world_size: int) -> list[Any]:
    watchdog = Watchdog(interval=0.1, silent_after=60.0)
    look = Look(watchdog)
    make_trainer(rank, world_size, callbacks=[watchdog, look]).fit(TheirModule(), make_loader(rank, world_size))
    return look.seen


def test_the_port_is_that_of_the_rendezvous_and_closes_when_all_have_come(ranks: RankPool) -> None:
    seen = ranks.run(3, watched, timeout=60)
    assert seen[1:] == [[None], [None]]
    problem, addresses, open_still = seen[0]
    assert problem is None
    assert addresses in (["127.0.0.1"], ["127.0.0.1", "::1"])
    assert not open_still


class Told:
    """In place of a heartbeat: what it is told, and when."""

    problem = None

    def __init__(self) -> None:
        self.heard: list[str] = []

    def fail(self, reason: str) -> None:
        self.heard.append(reason)


@pytest.mark.parametrize("found", [True, False])
def test_who_broke_a_collective_is_waited_for(found: bool) -> None:
    """The main thread may have heard of it first, and would end before it is known which rank it was."""
    watchdog, heartbeat = Watchdog(patience=0.6), Told()
    watchdog._heartbeat = heartbeat  # type: ignore[assignment]
    if found:
        threading.Timer(0.2, watchdog._verdict, ("died", "rank 1 has died")).start()
    trainer: Any = None
    begun = time.monotonic()
    broken = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer")
    watchdog.on_exception(trainer, trainer, broken)
    waited = time.monotonic() - begun
    assert waited >= (0.15 if found else 0.55)
    assert watchdog._told.is_set() == found
    assert heartbeat.heard[0].startswith("RuntimeError: [")


def test_an_error_of_its_own_is_told_at_once() -> None:
    for error in (KeyError("x"), RuntimeError("shapes do not fit"), ValueError("/gloo/")):
        watchdog, heartbeat = Watchdog(patience=60.0), Told()
        watchdog._heartbeat = heartbeat  # type: ignore[assignment]
        trainer: Any = None
        watchdog.on_exception(trainer, trainer, error)
        assert len(heartbeat.heard) == 1


RAISES = """
from lightning_pfc.callbacks import Watchdog
watchdog = Watchdog(patience=60.0)
watchdog._verdict("died", "rank 1 (host n2, process 4711) has died")
error = RuntimeError("/gloo/transport/tcp/pair.cc: Connection closed by peer")
watchdog.on_exception(None, None, error)
raise error
"""


def test_its_word_stands_below_that_of_a_collective() -> None:
    done = subprocess.run([sys.executable, "-c", RAISES], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "Connection closed by peer" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Watchdog: rank 1 (host n2, process 4711) has died."), done.stderr
