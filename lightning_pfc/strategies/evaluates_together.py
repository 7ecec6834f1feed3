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
    """One message (1 KiB, on the CPU) behind the last batch of each loader of a validation or test.

    What was logged is reduced there, and a head that is called in the step speaks to all ranks. Where one of them has
    no batch any more, it meets the others in this message before that, and all raise. Every Trainer has this callback
    (:mod:`lightning_pfc.strategies.guard`); it acts under ``strategy="pfc"`` with a head, on several ranks.
    """

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Meet the other ranks behind the last batch of a loader.

        Raises:
            RuntimeError: on every rank, if some of them have more.
        """
        self._meet(trainer, pl_module, "validation", batch_idx, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """As in a validation."""
        self._meet(trainer, pl_module, "test", batch_idx, dataloader_idx)

    def _meet(self, trainer: L.Trainer, module: L.LightningModule, what: str, batch: int, loader: int) -> None:
        strategy, loop = trainer.strategy, trainer._active_loop
        if not isinstance(strategy, PartialFCStrategy) or strategy.world_size == 1 or not acts(self, trainer):
            return
        if not isinstance(loop, _EvaluationLoop):
            return
        ends = loop._is_sequential and batch + 1 == loop.max_batches[loader]
        if not ends and not loop.batch_progress.is_last_batch:
            return
        if next(iter_heads(module), None) is not None:
            strategy.comm.agreement.exchange(f"the last batch of {f'loader {loader} of ' if loader else ''}the {what}")
