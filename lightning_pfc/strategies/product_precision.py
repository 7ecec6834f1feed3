"""A callback that every Trainer gets: it settles the precision of the heads' products, and says it once."""

from __future__ import annotations

import sys

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info


class SettlePrecision(Callback):
    """``precision="auto"`` of a head follows the Trainer's; see :mod:`lightning_pfc.heads.softmax.precision`."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first training step."""
        self._settle(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first batch."""
        self._settle(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first batch."""
        self._settle(trainer, pl_module)

    @staticmethod
    def _settle(trainer: Trainer, module: LightningModule) -> None:
        heads = sys.modules.get("lightning_pfc.heads.partial_fc")  # not imported, so nobody has a head
        for name, head in heads.iter_heads(module) if heads is not None else ():
            if head.settle_precision(head.device, str(trainer.precision)):
                rank_zero_info(
                    f"{name}: products in {head.precision} (precision={head.asked_precision}, the Trainer's is "
                    f"{trainer.precision})"
                )
