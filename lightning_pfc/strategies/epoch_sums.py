"""What an epoch has logged so far, in its checkpoints: a resumed run goes on with the sums of the interrupted one."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.apply_func import apply_to_collection
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_pfc.strategies.once import acts
from lightning_pfc.strategies.pfc import PartialFCStrategy

Sums = dict[str, dict[str, Any]]


class EpochSums(Callback):
    """Carries sums and counts of ``self.log(..., on_epoch=True)`` over a resume in the middle of an epoch.

    Lightning starts them anew, and reports a mean over the batches after the resume as that of the epoch. Every Trainer
    has this callback (:mod:`lightning_pfc.strategies.guard`); it acts under ``strategy="pfc"``. Each rank goes on with
    its own sums; on another number of ranks the first ones take the sums of those that are gone.

    Saving is a collective: each rank sends its sums to all others.
    """

    def __init__(self) -> None:
        self._trainer: L.Trainer | None = None
        self._loaded: list[Sums] = []
        self._left: Sums = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remember whose sums they are."""
        own = stage == "fit" and isinstance(trainer.strategy, PartialFCStrategy) and acts(self, trainer)
        self._trainer = trainer if own else None
        self._loaded, self._left = [], {}

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forget."""
        self._trainer = None

    # not by `state_dict`: Lightning refuses two callbacks of a kind that have one

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """The sums of every rank, within an epoch; nothing between two."""
        if self._trainer is not None and (found := self._sums_of_all(self._trainer)):
            checkpoint.setdefault("callbacks", {})[self.state_key] = {"sums": found}

    def _sums_of_all(self, trainer: L.Trainer) -> list[Sums]:
        if not _is_within_epoch(trainer):
            return []
        results = trainer.fit_loop.epoch_loop._results
        own = {key: each for key, metric in results.items() if (each := _sums(metric))}
        own |= {key: each for key, each in self._left.items() if key not in own}
        strategy = trainer.strategy
        assert isinstance(strategy, PartialFCStrategy)
        agreement = strategy.comm.agreement
        found: list[Any] = [own]
        if agreement.group is not None:
            agreement.exchange("EpochSums.on_save_checkpoint")
            found = [None] * strategy.world_size
            dist.all_gather_object(found, own, group=agreement.group)
        return found if any(found) else []

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep them until the epoch goes on."""
        if self._trainer is not None:
            self._loaded = list(checkpoint.get("callbacks", {}).get(self.state_key, {}).get("sums", ()))

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Before the first batch: find out which sums are this rank's, and put metrics of the module back."""
        loaded, self._loaded = self._loaded, []
        if loaded and len(loaded) != trainer.world_size and any("states" in e for r in loaded for e in r.values()):
            rank_zero_warn(
                f"The metrics of this epoch were taken on {len(loaded)} ranks and start anew on {trainer.world_size}."
            )
        for sums in loaded[trainer.global_rank :: trainer.world_size]:
            for key, each in sums.items():
                if "states" not in each:
                    self._left[key] = _added(self._left[key], each) if key in self._left else each
                elif len(loaded) == trainer.world_size:
                    _restore(pl_module.get_submodule(each["attribute"]), each)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Lightning clears its sums at the first batch of a start: what was before is added after it."""
        if not self._left:
            return
        for key, metric in trainer.fit_loop.epoch_loop._results.items():
            if metric.is_tensor and not metric.has_reset and (before := self._left.pop(key, None)) is not None:
                now = _added(before, _sums(metric))
                metric.value = now["value"].to(metric.value.device)
                if "count" in now:
                    metric.cumulated_batch_size = now["count"].to(metric.value.device)
                metric._computed = None

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What was not logged again stays what it was, and does not go into the next epoch."""
        self._left = {}


def _is_within_epoch(trainer: L.Trainer) -> bool:
    progress: Any = trainer.fit_loop.epoch_progress.total
    return progress.processed < progress.started and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def _sums(metric: Any) -> dict[str, Any]:
    """Of one logged name; empty if nothing was logged, or nothing that is summed over an epoch."""
    if metric.has_reset or not metric.meta.on_epoch:
        return {}
    if isinstance(metric.value, Metric):
        inner = metric.value
        states = {name: apply_to_collection(getattr(inner, name), Tensor, _on_cpu) for name in inner._defaults}
        return {"attribute": metric.meta.metric_attribute, "states": states, "updates": inner._update_count}
    kind = next((k for k in ("mean", "max", "min", "sum") if getattr(metric.meta, f"is_{k}_reduction")), "custom")
    if kind == "custom":
        return {}
    count = {"count": _on_cpu(metric.cumulated_batch_size)} if kind == "mean" else {}
    return {"kind": kind, "value": _on_cpu(metric.value), **count}


def _added(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """In this order, which is that of a run that was not interrupted: the same bits."""
    join = {"max": torch.maximum, "min": torch.minimum}.get(before["kind"], torch.add)
    count = {"count": before["count"] + _on_cpu(now["count"])} if "count" in before else {}
    return {"kind": before["kind"], "value": join(before["value"], _on_cpu(now["value"])), **count}


def _restore(metric: nn.Module, saved: dict[str, Any]) -> None:
    assert isinstance(metric, Metric)
    for name, value in saved["states"].items():
        setattr(metric, name, move_data_to_device(value, metric.device))
    metric._update_count = int(saved["updates"])
    metric._computed = None


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()
