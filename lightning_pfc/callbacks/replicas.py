"""A check that what should be the same on every rank is."""

from __future__ import annotations

from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback

from lightning_pfc.callbacks.ranks import comm_of
from lightning_pfc.checked import checked
from lightning_pfc.distributed.bits import bit_sum
from lightning_pfc.strategies.pfc import PartialFCStrategy
from lightning_pfc.strategies.replicas import ReplicaWatch

__all__ = ["ReplicaCheck", "bit_sum"]


@checked
class ReplicaCheck(Callback):
    """Compares the replicated parameters of all ranks every N steps, bit for bit.

    Replicas drift apart when something steps on one rank only, draws random numbers that differ, takes a norm over its
    own shard, or when memory fails; training then goes on and is wrong. Each rank adds up the bits of every parameter
    as 64-bit integers (one pass over the memory, no copy, any order of the sum gives the same), and the ranks exchange
    one number each. Only if they differ, the sums of all parameters are compared, to name the first that does.

    Under ``strategy="pfc"`` this is done without the callback; it says how often then, and what follows. The first
    checks come after 1, 2, 4, 8, ... steps, the last before each checkpoint and at the end, and the numbers travel in a
    message of the strategy. Centers are left out, since every rank has other ones; with ``head_group_size`` their
    copies are compared as well.

    Args:
        every_n_steps: optimizer steps between two checks.
        action: ``"raise"`` on every rank, or ``"warn"`` and go on.

    Raises:
        ValueError: if ``every_n_steps`` is not positive, or ``action`` is neither of the two.
    """

    def __init__(self, every_n_steps: int = 200, action: Literal["raise", "warn"] = "raise") -> None:
        self._watch = ReplicaWatch(every_n_steps, action)
        self.every_n_steps = every_n_steps
        self.action = action

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Have the strategy do it, where it does."""
        if isinstance(trainer.strategy, PartialFCStrategy):
            trainer.strategy.replica_watch = self._watch

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Check what was loaded, and then after every N optimizer steps."""
        if not isinstance(trainer.strategy, PartialFCStrategy) and self._watch.is_due(trainer.global_step):
            self.check(trainer, pl_module)

    def check(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare now; every rank must call this. One exchange of the control channel, two if something differs.

        Raises:
            RuntimeError: on every rank, naming the first parameter that differs, and the ranks.
        """
        self._watch.check(pl_module, comm_of(trainer), trainer.global_step)
