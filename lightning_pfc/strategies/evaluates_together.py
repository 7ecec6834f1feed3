"""A rank that has more batches to evaluate than another one is told so, where the two would wait for each other."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop

from lightning_pfc.heads.partial_fc import iter_heads
from lightning_pfc.strategies.once import acts
from lightning_pfc.strategies.pfc import PartialFCStrategy


class EvaluatesTogether(Callback):
    """One message (1 KiB, on the CPU) behind the last batch of a validation or test, before what it logged is reduced.

    A head that is called in the step speaks to all ranks. Where one of them has no batch any more, it meets the others
    in this message, and all raise. A rank that has no batch at all, or does not know which is the last, sends it at the
    end. Every Trainer has this callback (:mod:`lightning_pfc.strategies.guard`); it acts under ``strategy="pfc"`` with
    a head, on several ranks.
    """

    def __init__(self) -> None:
        self._has_met = False

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nobody has come yet."""
        self._has_met = False

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Meet the other ranks behind the last batch.

        Raises:
            RuntimeError: on every rank, if some of them have more.
        """
        self._meet_behind_the_last(trainer, pl_module, "validation")

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Meet them now, if there was no last batch."""
        self._meet(trainer, pl_module, "validation")

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """As in a validation."""
        self._has_met = False

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """As in a validation."""
        self._meet_behind_the_last(trainer, pl_module, "test")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """As in a validation."""
        self._meet(trainer, pl_module, "test")

    def _meet_behind_the_last(self, trainer: L.Trainer, module: L.LightningModule, what: str) -> None:
        loop = trainer._active_loop
        if isinstance(loop, _EvaluationLoop) and loop.batch_progress.is_last_batch:
            self._meet(trainer, module, what)

    def _meet(self, trainer: L.Trainer, module: L.LightningModule, what: str) -> None:
        strategy = trainer.strategy
        if not isinstance(strategy, PartialFCStrategy) or strategy.world_size == 1 or not acts(self, trainer):
            return
        if self._has_met or next(iter_heads(module), None) is None:
            return
        self._has_met = True
        strategy.comm.agreement.exchange(f"the last batch of the {what}")
