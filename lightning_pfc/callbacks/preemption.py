"""Leaving in time: a signal ends the current step, saves, and puts the job back into the queue."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_pfc.callbacks.process_end import end_after, end_process
from lightning_pfc.callbacks.ranks import comm_of
from lightning_pfc.callbacks.signal_handlers import SignalHandlers
from lightning_pfc.checked import checked
from lightning_pfc.checkpoint.publish import run_of
from lightning_pfc.processes.signals import CAUGHT, leave, requeue_job, slurm_job, wants_requeue
from lightning_pfc.strategies.pfc import PartialFCStrategy

_log = logging.getLogger(__name__)

NAME = "preempted"
"""The checkpoint is called ``last-preempted.ckpt``, so that ``ckpt_path="last"`` finds it."""


class Preempted(SystemExit):
    """Raised on every rank once the checkpoint is there; the status is 128 + the number of the signal.

    Attributes:
        path: the checkpoint.
    """

    def __init__(self, number: int, path: Path) -> None:
        super().__init__(128 + number)
        self.path = path


@checked
class Preemption(Callback):
    """Saves and leaves when a signal says that the machine is going to be taken away.

    It takes the place of Lightning's own handlers, which run collectives inside the handler and hang when the ranks are
    not at the same instruction. Here the handler stores a number. The ranks compare these numbers once a step, in a
    message that ``strategy="pfc"`` exchanges anyway (other strategies: one all-gather of 1 KiB on the CPU every
    ``every_n_batches``), and so leave after the same step, however far apart the signal reached them; it is enough
    that it reaches one of them. Then:

    1. all ranks save ``last-preempted.ckpt`` beside the checkpoints of ``ModelCheckpoint``;
    2. under SLURM rank 0 calls ``scontrol requeue``, after a warning signal (SIGUSR1, SIGUSR2), and after SIGTERM if
       the controller says that the job is being preempted: it would requeue a job that is still there when the time
       of grace is over, and not one that has ended in time. Any other SIGTERM is ``scontrol requeue`` or ``scancel``;
    3. the processes exit, with status 0 if the job is requeued; else :class:`Preempted` is raised, a ``SystemExit``.

    ``fit(..., ckpt_path="last")`` goes on from there (``pfc-train`` does so by itself after a requeue or a restart).
    The checkpoint is removed once a newer one is beside it.

    A step that accumulates gradients is ended first, and so is a validation. In ``validate``, ``test`` and ``predict``
    there is nothing to save: each rank leaves after its batch. Nor is there before the first step, and a job of SLURM
    leaves at once. A signal that comes after the last step goes to whoever handled it before.

    Args:
        signals: their names; by default SIGTERM, and SIGUSR1 where the system has it. SIGUSR2 is added in a job of
            submitit, which uses it for the same purpose.
        requeue: whether to requeue a SLURM job.
        dirpath: where to save; by default beside the first ``ModelCheckpoint``'s, else in ``checkpoints/`` of the
            trainer's root.
        every_n_batches: how often other strategies compare.
        seconds: after which the process exits with status 1 if saving has not come to an end.

    Raises:
        ValueError: for a signal that does not exist or cannot be handled.
    """

    def __init__(
        self,
        signals: Sequence[str] | None = None,
        requeue: bool = True,
        dirpath: str | os.PathLike[str] | None = None,
        every_n_batches: int = 1,
        seconds: float = 600.0,
    ) -> None:
        signals = [name for name in CAUGHT if hasattr(signal, name)] if signals is None else signals
        for name in signals:
            if name not in signal.Signals.__members__ or name in ("SIGKILL", "SIGSTOP"):
                raise ValueError(f"signals={list(signals)}: {name!r} is no signal that can be handled.")
        if every_n_batches < 1:
            raise ValueError(f"every_n_batches={every_n_batches} must be at least 1.")
        self.signals = [signal.Signals[name] for name in signals]
        if _under_submitit() and signal.SIGUSR2 not in self.signals:
            self.signals.append(signal.SIGUSR2)
        self.requeue = requeue
        self.dirpath = None if dirpath is None else Path(dirpath)
        self.every_n_batches = every_n_batches
        self.seconds = seconds
        self._received = 0
        self._agreed = 0
        self._batches = 0
        self._global_step = -1
        self._has_begun = False
        self._trainer: L.Trainer | None = None
        self._handlers = SignalHandlers(self.signals, self._handle)

    # -- signals

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take over the signals, and the last place among the callbacks: what the others do at a step's end counts."""
        self._trainer = trainer
        self._agreed, self._batches, self._global_step, self._has_begun = 0, 0, -1, stage != "fit"
        trainer.callbacks = [c for c in trainer.callbacks if c is not self] + [self]  # type: ignore[attr-defined]
        self._handlers.replace_those_of(trainer)
        self._handlers.install()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals again, should anybody have taken them since."""
        self._handlers.install()
        self._global_step = trainer.global_step

    def on_train_batch_start(self, *args: Any) -> None:
        """From now on there is something to save."""
        self._has_begun = True

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back, also one that has come too late for a step or a batch."""
        self._trainer = None
        late, self._received = self._received, 0
        self._handlers.restore()
        if late and callable(signal.getsignal(late)):
            signal.raise_signal(late)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._trainer = None
        self._handlers.restore()

    def _handle(self, number: int) -> None:
        if not self._has_begun and self.requeue and slurm_job() is not None:
            leave(number)  # what comes before a first step may take longer than the time that is left
        self._received = self._received or number
        strategy = self._trainer.strategy if self._trainer is not None else None
        if isinstance(strategy, PartialFCStrategy):
            strategy.raise_hand(self._received)

    # -- agreeing and leaving

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Compare with the other ranks; leave if any has got a signal, unless gradients are being accumulated."""
        self._batches += 1
        stepped = trainer.global_step != self._global_step
        self._global_step = trainer.global_step
        numbers = self._numbers(trainer)
        self._agreed = self._agreed or next((number for number in numbers if number), 0)
        if self._agreed and stepped:
            self._save_and_leave(trainer, [rank for rank, number in enumerate(numbers) if number])

    def _numbers(self, trainer: L.Trainer) -> list[int]:
        if trainer.world_size == 1:
            return [self._received]
        if isinstance(trainer.strategy, PartialFCStrategy) and trainer.strategy.raised_hands is not None:
            return trainer.strategy.raised_hands
        if self._batches % self.every_n_batches:
            return [0] * trainer.world_size
        return [n for n, *_ in comm_of(trainer).agreement.exchange("preemption", [self._received])]

    def _save_and_leave(self, trainer: L.Trainer, ranks: list[int]) -> None:
        number = self._agreed
        self._handlers.ignore()
        limit = end_after(self.seconds, f"Preemption: not done after {self.seconds:g} s; this process ends without.")
        path = self._path(trainer)
        trainer.save_checkpoint(path, weights_only=False)
        if isinstance(trainer.strategy, PartialFCStrategy):
            trainer.strategy.wait_for_checkpoints()
        connector = getattr(trainer, "_logger_connector", None)
        if connector is not None and hasattr(connector, "update_train_step_metrics"):
            connector.update_train_step_metrics()  # what the trainer would do next; else this step's row were missing
        requeued, problem = False, ""
        if trainer.is_global_zero and self._requeues(number):
            requeued, problem = requeue_job()
        # All have saved, and rank 0 has had its word with the controller, before any process ends.
        requeued = bool(comm_of(trainer).agreement.exchange("preempted", [int(requeued)])[0][0])
        limit.cancel()
        if trainer.is_global_zero:
            self._tell(trainer, ranks, path, requeued, problem)
        if requeued or _under_submitit():
            # Not an exception: a launcher that waits for a result would take the job for finished.
            end_process(trainer, 0 if requeued else 128 + number)
        self._received = 0  # the same trainer may fit again
        if isinstance(trainer.strategy, PartialFCStrategy):
            trainer.strategy.raise_hand(0)
        raise Preempted(number, path)

    def _tell(self, trainer: L.Trainer, ranks: list[int], path: Path, requeued: bool, problem: str) -> None:
        who = f"rank {', '.join(map(str, ranks))}" if trainer.world_size > 1 else "this process"
        what = f"requeued job {slurm_job()}" if requeued else "leaving"
        _log.info(
            "%s reached %s: saved %s at step %d, %s.",
            signal.Signals(self._agreed).name, who or "a rank", path, trainer.global_step, what,
        )  # fmt: skip
        if problem:
            _log.warning(
                "Job %s could not be requeued (%s). Submit it again with ckpt_path=%s.", slurm_job(), problem, path
            )

    def _requeues(self, number: int) -> bool:
        return self.requeue and wants_requeue(number)

    def _path(self, trainer: L.Trainer) -> Path:
        first = next(
            (c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.dirpath is not None), None
        )
        last, suffix = (first.CHECKPOINT_NAME_LAST, first.FILE_EXTENSION) if first is not None else ("last", ".ckpt")
        folder = self.dirpath
        if folder is None and first is not None and first.dirpath is not None:
            folder = Path(first.dirpath)
        if folder is None:
            folder = Path(trainer.default_root_dir) / "checkpoints"
        return folder / f"{last if '{' not in last else 'last'}-{NAME}{suffix}"

    # -- where there is nothing to save

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Leave, unless this is within a fit."""
        self._leave_at_once(trainer)

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Leave."""
        self._leave_at_once(trainer)

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Leave."""
        self._leave_at_once(trainer)

    def _leave_at_once(self, trainer: L.Trainer) -> None:
        number = self._received
        if not number or trainer.state.fn == "fit":
            return
        self._handlers.ignore()
        requeued = False
        if trainer.is_global_zero and self._requeues(number):
            requeued, problem = requeue_job()
            _log.info("%s: %s.", signal.Signals(number).name, problem or f"requeued job {slurm_job()}")
        end_process(trainer, 0 if requeued else 128 + number)

    # -- afterwards

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the checkpoint of a preemption that a newer one has made useless."""
        self._tidy(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the checkpoint of a preemption that a newer one has made useless."""
        self._tidy(trainer)

    def _tidy(self, trainer: L.Trainer) -> None:
        path = self._path(trainer)
        if not trainer.is_global_zero or not path.exists():
            return
        made = path.stat().st_mtime
        if isinstance(trainer.strategy, PartialFCStrategy) and run_of(path) not in (None, trainer.strategy.run_id):
            return  # another run's, left where it is
        others = (p for p in path.parent.glob(f"*{path.suffix}") if p != path and not p.name.startswith("."))
        if any(p.exists() and p.stat().st_mtime > made for p in others):
            trainer.strategy.remove_checkpoint(path)


def _under_submitit() -> bool:
    return "SUBMITIT_EXECUTOR" in os.environ
