"""What ``self.log(..., on_epoch=True)`` has added up over an epoch: read, joined, and put back."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torchmetrics import Metric

Sums = dict[str, dict[str, Any]]
"""By key of Lightning's results."""

_WORDS = ("fx", "name", "prog_bar", "logger", "on_step", "add_dataloader_idx")


def sums_of(metric: Any) -> dict[str, Any]:
    """Of one logged name; empty if nothing was logged, or nothing that is summed over an epoch."""
    meta = metric.meta
    if metric.has_reset or not meta.on_epoch:
        return {}
    words = {word: getattr(meta, word) for word in _WORDS}
    words |= {"sync_dist": meta.sync.should, "rank_zero_only": meta.sync.rank_zero_only}
    if isinstance(metric.value, Metric):
        inner = metric.value
        states = {name: apply_to_collection(getattr(inner, name), Tensor, on_cpu) for name in inner._defaults}
        return {"attribute": meta.metric_attribute, "states": states, "updates": inner._update_count, "log": words}
    kind = next((k for k in ("mean", "max", "min", "sum") if getattr(meta, f"is_{k}_reduction")), "custom")
    if kind == "custom":
        return {}
    count = {"count": on_cpu(metric.cumulated_batch_size)} if kind == "mean" else {}
    return {"kind": kind, "value": on_cpu(metric.value), "log": words, **count}


def added(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """In this order, which is that of a run that was not interrupted: the same bits."""
    join = {"max": torch.maximum, "min": torch.minimum}.get(before["kind"], torch.add)
    count = {"count": before["count"] + on_cpu(now["count"])} if "count" in before else {}
    return {**before, "value": join(before["value"], on_cpu(now["value"])), **count}


def set_sums(metric: Any, sums: dict[str, Any]) -> None:
    """Have a logged name hold these sums."""
    metric.value = sums["value"].to(metric.value.device)
    if "count" in sums:
        metric.cumulated_batch_size = sums["count"].to(metric.value.device)
    metric._computed = None


def restore_metric(module: nn.Module, saved: dict[str, Any]) -> None:
    """Give a metric of the module the states that it had."""
    metric = module.get_submodule(saved["attribute"])
    assert isinstance(metric, Metric)
    for name, value in saved["states"].items():
        setattr(metric, name, move_data_to_device(value, metric.device))
    metric._update_count = int(saved["updates"])
    metric._computed = None


def log_again(trainer: L.Trainer, module: L.LightningModule, key: str, sums: dict[str, Any]) -> None:
    """Have the results of the epoch hold what they held, where no batch is left that would log it."""
    results = trainer.fit_loop.epoch_loop._results
    words = dict(sums.get("log", {}))
    if not words:  # an older checkpoint
        return
    if "states" in sums:
        value: Any = module.get_submodule(sums["attribute"])
        results.log(value=value, metric_attribute=sums["attribute"], batch_size=1, **words)
        return
    value = sums["value"].to(module.device)
    reduce_fx, sync = getattr(torch, sums["kind"]), trainer.strategy.reduce
    results.log(value=value, reduce_fx=reduce_fx, sync_dist_fn=sync, batch_size=1, **words)
    set_sums(results[key], sums)


def on_cpu(tensor: Tensor) -> Tensor:
    """A copy there."""
    return tensor.detach().cpu().clone()
