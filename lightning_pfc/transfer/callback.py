"""The weights that a run begins with, as a callback of any Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_pfc.distributed import Comm
from lightning_pfc.heads.partial_fc import iter_heads
from lightning_pfc.strategies import PartialFCStrategy
from lightning_pfc.strategies.already_seen import warn_of_seen
from lightning_pfc.strategies.whose import names_of_data
from lightning_pfc.transfer.starting import Report, check_parts, init_from


class InitFrom(Callback):
    """Starts ``fit`` from weights that exist; see :func:`~lightning_pfc.transfer.init_from`.

    A run that goes on from a checkpoint has that checkpoint's weights in the end, since it is restored afterwards. The
    callback must come before those that copy the model.

    Args:
        source: a checkpoint, a run folder, a state dict, safetensors, a folder of a hub, or ``hf-hub:OWNER/MODEL``.
        parts: of ``backbone``, ``neck`` and ``head``, those that must be found; None takes what is there.

    Attributes:
        report: what was taken, is new and was left; None before ``fit``.
        goes_on_from: the checkpoint that this run goes on from; then nothing is read. None, the default: it begins.

    Raises:
        ValueError: for a part that does not exist.
    """

    def __init__(self, source: str, parts: Sequence[str] | None = None) -> None:
        check_parts(parts)
        self.source, self.parts = str(source), parts
        self.report: Report | None = None
        self.goes_on_from: str | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Fill the module, when the heads know their rows and nobody has copied it yet."""
        if stage != "fit":
            return
        if self.goes_on_from is not None:
            rank_zero_info(f"init_from={self.source} was for the beginning: this goes on from {self.goes_on_from}.")
            return
        strategy: Any = trainer.strategy
        ours = isinstance(strategy, PartialFCStrategy)
        names = names_of_data(trainer, [head for _, head in iter_heads(pl_module)])
        by_position = ours and strategy.match == "position"
        comm = strategy.comm if ours else Comm.single()
        self.report = init_from(
            pl_module, self.source, parts=self.parts, class_names=names, by_position=by_position, comm=comm
        )
        if trainer.is_global_zero:
            warn_of_seen(f"init_from={self.source}", self.report.identities, trainer)
