"""What a run has logged so far, in its checkpoints: a resumed one goes on with the sums of the interrupted epoch."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_pfc.strategies.logged_sums import Sums, added, log_again, on_cpu, restore_metric, set_sums, sums_of
from lightning_pfc.strategies.once import acts
from lightning_pfc.strategies.pfc import PartialFCStrategy


class EpochSums(Callback):
    """Carries sums and counts of ``self.log(..., on_epoch=True)`` over a resume in the middle of an epoch.

    Lightning starts them anew, and reports a mean over the batches after the resume as that of the epoch. Every Trainer
    has this callback (:mod:`lightning_pfc.strategies.guard`); it acts under ``strategy="pfc"``. Each rank goes on with
    its own sums; on another number of ranks the first ones take the sums of those that are gone. Values that callbacks
    and schedules monitor, such as those of the last validation, are known again too.

    Saving is a collective: each rank sends its sums to all others.
    """

    def __init__(self) -> None:
        self._trainer: L.Trainer | None = None
        self._loaded: list[Sums] = []
        self._monitored: list[dict[str, Tensor]] = []
        self._left: Sums = {}
        self._logged_again: list[str] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remember whose sums they are."""
        own = stage == "fit" and isinstance(trainer.strategy, PartialFCStrategy) and acts(self, trainer)
        self._trainer = trainer if own else None
        self._loaded, self._monitored, self._left, self._logged_again = [], [], {}, []

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget."""
        self._trainer = None

    # not by `state_dict`: Lightning refuses two callbacks of a kind that have one

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """The sums of every rank, within an epoch, and the values that it knows."""
        if self._trainer is None or self._trainer.fit_loop._data_fetcher is None:
            return
        known = {name: on_cpu(value) for name, value in trainer.callback_metrics.items()}
        found = _of_all_ranks(self._trainer, (self._own_sums(trainer), known))
        if any(any(each) for each in found):
            record = {"sums": [sums for sums, _ in found], "monitored": [values for _, values in found]}
            checkpoint.setdefault("callbacks", {})[self.state_key] = record

    def _own_sums(self, trainer: L.Trainer) -> Sums:
        progress: Any = trainer.fit_loop.epoch_progress.total
        if progress.processed >= progress.started:
            return {}
        results = trainer.fit_loop.epoch_loop._results
        own = {key: each for key, metric in results.items() if (each := sums_of(metric))}
        return own | {key: each for key, each in self._left.items() if key not in own}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep them until training goes on."""
        if self._trainer is not None:
            record = checkpoint.get("callbacks", {}).get(self.state_key, {})
            self._loaded, self._monitored = list(record.get("sums", ())), list(record.get("monitored", ()))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Know the values again, and the sums too where only the end of their epoch is left."""
        monitored, self._monitored = self._monitored, []
        if monitored:
            own = monitored[min(trainer.global_rank, len(monitored) - 1)]
            known = {name: value.to(pl_module.device) for name, value in own.items()}
            trainer._logger_connector._callback_metrics.update(known)
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            left = self._take_loaded(trainer, pl_module)
            for key, each in left.items():
                log_again(trainer, pl_module, key, each)
            self._logged_again = list(left)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What was logged again has been reported: a name may be logged in another way now."""
        for key in self._logged_again:
            trainer.fit_loop.epoch_loop._results.pop(key, None)
        self._logged_again = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Before the first batch: find out which sums are this rank's, and put metrics of the module back."""
        taken = self._take_loaded(trainer, pl_module)
        self._left |= {key: each for key, each in taken.items() if "states" not in each}

    def _take_loaded(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Sums:
        """This rank's; metrics of the module have theirs already."""
        loaded, self._loaded = self._loaded, []
        if loaded and len(loaded) != trainer.world_size and any("states" in e for r in loaded for e in r.values()):
            rank_zero_warn(
                f"The metrics of this epoch were taken on {len(loaded)} ranks and start anew on {trainer.world_size}."
            )
        taken: Sums = {}
        for sums in loaded[trainer.global_rank :: trainer.world_size]:
            for key, each in sums.items():
                if "states" not in each:
                    taken[key] = added(taken[key], each) if key in taken else each
                elif len(loaded) == trainer.world_size:
                    restore_metric(pl_module, each)
                    taken[key] = each
        return taken

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Lightning clears its sums at the first batch of a start: what was before is added after it."""
        if not self._left:
            return
        for key, metric in trainer.fit_loop.epoch_loop._results.items():
            if metric.is_tensor and not metric.has_reset and (before := self._left.pop(key, None)) is not None:
                set_sums(metric, added(before, sums_of(metric)))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What was not logged again stays what it was, and does not go into the next epoch."""
        self._left = {}


def _of_all_ranks(trainer: L.Trainer, own: Any) -> list[Any]:
    strategy = trainer.strategy
    assert isinstance(strategy, PartialFCStrategy)
    agreement = strategy.comm.agreement
    found: list[Any] = [own]
    if agreement.group is not None:
        agreement.exchange("EpochSums.on_save_checkpoint")
        found = [None] * strategy.world_size
        dist.all_gather_object(found, own, group=agreement.group)
    return found
