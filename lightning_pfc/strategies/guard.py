"""A callback that every Trainer gets: it stops a strategy that would overwrite one rank's classes with another's.

Stock strategies take every parameter for a copy of rank 0's. With shards of equal shape they broadcast it without an
error, in ``validate`` as in ``fit``. Lightning asks the entry-point group ``lightning.pytorch.callbacks_factory`` for
callbacks whenever a Trainer is made, so a project that never names this package's strategy is still told.
"""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy, Strategy

from lightning_pfc.distributed.owner import foreign_strategy_message, get_owner, set_owner
from lightning_pfc.strategies.epoch_sums import EpochSums
from lightning_pfc.strategies.evaluates_together import EvaluatesTogether
from lightning_pfc.strategies.imported_heads import imported_heads
from lightning_pfc.strategies.same_loaders import SameLoaders
from lightning_pfc.strategies.settle_precision import SettlePrecision


def callbacks() -> list[Callback]:
    """What the entry point gives to each new Trainer; nothing of it acts in a step under a strategy of others."""
    return [ForeignStrategyGuard(), EpochSums(), SettlePrecision(), EvaluatesTogether(), SameLoaders()]


class ForeignStrategyGuard(Callback):
    """Refuses a sharded head under a multi-process strategy that is not :class:`PartialFCStrategy`.

    Heads that exist already are found in the module. For those that are built later, in ``configure_model``, the
    strategy's name is left in :mod:`lightning_pfc.distributed.owner`, and the head refuses at birth.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Runs before the module is configured, restored or synchronised, in every stage.

        Raises:
            RuntimeError: if the module holds a head that this strategy would damage.
        """
        if not overwrites_shards(trainer.strategy):
            return
        name = type(trainer.strategy).__name__
        set_owner(name)
        if any(imported_heads(pl_module)):
            raise RuntimeError(foreign_strategy_message(name))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The strategy no longer owns the process."""
        self._forget(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The strategy no longer owns the process."""
        self._forget(trainer)

    @staticmethod
    def _forget(trainer: Trainer) -> None:
        owner = get_owner()
        if owner is not None and owner.comm is None and owner.name == type(trainer.strategy).__name__:
            set_owner(None)


def overwrites_shards(strategy: Strategy) -> bool:
    """Whether a strategy treats what differs between ranks as copies of one tensor."""
    from lightning_pfc.strategies.pfc import PartialFCStrategy

    if isinstance(strategy, PartialFCStrategy) or not isinstance(strategy, ParallelStrategy):
        return False
    # One process under DDP has nothing to overwrite; FSDP and its kin flatten or split parameters even then.
    return strategy.world_size > 1 or not isinstance(strategy, DDPStrategy)
