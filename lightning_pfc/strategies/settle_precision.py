"""A callback that every Trainer gets: it settles the precision and the kernels of the heads, and says so."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_pfc.strategies.imported_heads import imported_heads
from lightning_pfc.strategies.once import acts
from lightning_pfc.strategies.said_kernels import say_kernels


class SettlePrecision(Callback):
    """``precision="auto"`` of a head follows the Trainer's; see :mod:`lightning_pfc.heads.softmax.precision`."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first training step."""
        if not acts(self, trainer):
            return
        for name, asked, found in _settle(trainer, pl_module):
            rank_zero_info(f"{name}: products in {found} (precision={asked}, the Trainer's is {trainer.precision})")
        say_kernels(imported_heads(pl_module))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first batch."""
        _settle(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first batch."""
        _settle(trainer, pl_module)


def _settle(trainer: Trainer, module: LightningModule) -> list[tuple[str, str, str]]:
    """Every head's name, what was asked for and what products are computed in."""
    every = list(imported_heads(module))
    for _, head in every:
        head.settle_kernels()
    return [
        (name, head.asked_precision, head.settle_precision(head.device, str(trainer.precision))) for name, head in every
    ]
