"""A rank that dies, hangs or is cut off ends the whole job, by its name, in bounded time."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import itertools
import logging
import os
import sys
import threading
import time
from functools import partial
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from lightning_pfc.callbacks.preemption import Preempted
from lightning_pfc.callbacks.ranks import comm_of
from lightning_pfc.checked import checked
from lightning_pfc.distributed.comm import shared_store
from lightning_pfc.distributed.heartbeat import Heartbeat, Kind, Pace, Pulse

_log = logging.getLogger(__name__)
_meetings = itertools.count()


@checked
class Watchdog(Callback):
    """Ends this process when another rank has died, is cut off or stands still, and says which one and where it was.

    Errors that a rank can still report travel with the strategy's messages, and are raised on every rank. This is for
    what they cannot tell: a killed process, a cable, a data loader or a collective that never returns, be it in the
    head, in DDP's reduction or in a metric. Each rank has a thread with a connection to rank 0, and sends it a line
    every ``interval`` seconds; nothing is added to a training step but notes of where it is (0.4 us each).

    When something is found, the main threads get ``patience`` seconds to raise by themselves, as those in a collective
    do when a connection breaks; one that raises first waits as long for what is found, and says it again as its last
    line, so that a log ends with the cause. What is left then exits with status 1 and the stacks of its threads.
    Checkpoints are whole or absent at any moment, so the newest one is there to go on from.

    Args:
        stalled_after: seconds without any progress of a rank: a batch begun or ended, a backward pass, a batch of
            validation. It must be longer than the longest single thing your run does.
        silent_after: seconds without a sign of life from a rank: frozen, or cut off.
        patience: seconds between the finding and the end.
        interval: seconds between signs of life.

    Raises:
        ValueError: for times that are not positive, or ``silent_after`` below three intervals.
    """

    def __init__(
        self,
        stalled_after: float = 1800.0,
        silent_after: float = 60.0,
        patience: float = 10.0,
        interval: float = 2.0,
    ) -> None:
        for name, value in (("stalled_after", stalled_after), ("patience", patience), ("interval", interval)):
            if value <= 0:
                raise ValueError(f"{name}={value} must be a positive number of seconds.")
        if silent_after < 3 * interval:
            raise ValueError(f"silent_after={silent_after} must be at least three times interval={interval}.")
        self.patience = patience
        self.pace = Pace(interval, silent_after, stalled_after)
        self._pulse = Pulse()
        self._step = 0
        self._heartbeat: Heartbeat | None = None
        self._leaving = threading.Event()
        self._told = threading.Event()

    # -- life

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Connect the ranks; four messages of the control channel."""
        self.say_goodbye()
        atexit.unregister(_say)  # of an earlier run
        self._step = 0
        self._leaving, self._told = threading.Event(), threading.Event()
        self._pulse.mark((0, 0), f"the start of {getattr(stage, 'value', stage)}")
        heartbeat = Heartbeat(trainer.global_rank, trainer.world_size, self._pulse, self.pace, self._verdict)
        if trainer.world_size == 1:
            heartbeat.start()
        elif (store := shared_store()) is None:
            heartbeat.problem = "there is no store that all ranks share"
        else:
            meet = partial(comm_of(trainer).agreement.exchange, "Watchdog.setup")
            number = meet([next(_meetings)])[0][0]  # rank 0's
            heartbeat.connect(_own_address(trainer), store, f"lightning_pfc/heartbeat/{number}", meet)
        self._heartbeat = heartbeat

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Say goodbye."""
        self.say_goodbye()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """This rank leaves by itself; the others learn why. Of a broken collective, who broke it is waited for."""
        self._leaving.set()
        if self._heartbeat is not None and _is_of_a_collective(exception):
            self._told.wait(self.patience)
        if self._heartbeat is not None:
            if isinstance(exception, Preempted):
                self._heartbeat.stop()
            else:
                self._heartbeat.fail(f"{type(exception).__name__}: {exception}")
            self._heartbeat = None

    def say_goodbye(self) -> None:
        """This process is about to end in good order, or this run is: the others need not wonder."""
        self._leaving.set()
        if self._heartbeat is not None:
            if self._heartbeat.problem is not None:
                _log.warning("The watchdog did not see every rank: %s.", self._heartbeat.problem)
            self._heartbeat.stop()
            self._heartbeat = None

    def _verdict(self, kind: Kind, text: str) -> None:
        """Called in the heartbeat's thread."""
        leaving = self._leaving
        atexit.register(_say, f"Watchdog: {text}.")  # below the traceback of a main thread that raises by itself
        self._told.set()

        def end() -> None:
            message = f"Watchdog: {text}. This process ends in {self.patience:g} s."
            _say(message)
            _log.debug(message)
            if kind == "stalled":
                _dump_stacks()
            if leaving.wait(self.patience):
                return  # the main thread has raised, and goes its own way
            if kind != "stalled":
                _dump_stacks()
            _say(f"Watchdog: {text}. Ended.")
            for handler in logging.getLogger().handlers:
                with contextlib.suppress(Exception):
                    handler.flush()
            os._exit(1)

        # A thread of its own: rank 0's goes on to tell the others.
        threading.Thread(target=end, name="watchdog", daemon=True).start()

    # -- where the main thread is

    def _mark(self, stage: int, place: str) -> None:
        self._pulse.mark((self._step, stage), f"{place}, after {self._step} batches" if stage > 1 else place)

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Mark the place."""
        self._mark(0, "sanity check")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Mark the place."""
        self._mark(1, "loading the first batch")

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Mark the place."""
        self._step += 1
        self._mark(0, f"training_step of batch {self._step}")

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Mark the place."""
        self._mark(1, f"backward of batch {self._step}")

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Mark the place."""
        self._mark(1, f"optimizer step of batch {self._step}")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Mark the place."""
        self._mark(2, "callbacks, or loading the next batch")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Mark the place."""
        self._mark(3, "start of validation")

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Mark the place."""
        self._mark(4, "a batch of validation")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Mark the place."""
        self._mark(5, "end of validation")

    def on_test_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Mark the place."""
        self._mark(4, "a batch of the test")

    def on_predict_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Mark the place."""
        self._mark(4, "a batch of prediction")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Mark the place."""
        self._mark(6, "end of the epoch")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Mark the place."""
        self._pulse.mark((self._step, 2), f"saving a checkpoint, after {self._step} batches")


def _is_of_a_collective(exception: BaseException) -> bool:
    """Whether another rank may be the cause: Gloo raises plain RuntimeErrors, which name their place in it."""
    return isinstance(exception, getattr(dist, "DistError", ())) or (
        isinstance(exception, RuntimeError) and any(word in str(exception) for word in ("/gloo/", "NCCL"))
    )


def _own_address(trainer: L.Trainer) -> str:
    """How the other ranks find rank 0: it is what they have found it by already."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return str(environment.main_address) if environment is not None else "localhost"


def _say(text: str) -> None:
    print(f"{text}\n", end="", file=sys.stderr, flush=True)  # at once: other threads write, too


def _dump_stacks() -> None:
    with contextlib.suppress(Exception):  # a stderr without a file behind it
        faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr, all_threads=True)
        time.sleep(0.1)
