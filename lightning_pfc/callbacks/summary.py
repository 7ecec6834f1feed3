"""What a model is made of, counted as it is."""

from __future__ import annotations

from collections.abc import Iterable

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


class Summary(Callback):
    """One table of a module's parts when training begins: numbers, and bytes by each tensor's own type.

    Lightning's summary takes every number for one of the trainer's precision, so that centers in bfloat16 count twice,
    and prints FLOPs that it has not counted. Of sharded centers the rows of rank 0 are counted, as in its memory.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print it."""
        rank_zero_info("\n%s", describe(pl_module))


def describe(module: nn.Module) -> str:
    """A line for each child, then all parameters, those that are trained, and the memory of all."""
    rows = [("part", "type", "parameters", "MB")]
    for name, child in module.named_children():
        if tensors := list(child.parameters()):
            rows.append((name, type(child).__name__, f"{_count(tensors):,}", _megabytes(tensors)))
    tensors = list(module.parameters())
    trained = [tensor for tensor in tensors if tensor.requires_grad]
    rows.append(("all", "", f"{_count(tensors):,}", _megabytes(tensors)))
    if len(trained) < len(tensors):
        rows.append(("trained", "", f"{_count(trained):,}", _megabytes(trained)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}" for row in rows
    )


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors if not is_lazy(tensor))


def _megabytes(tensors: Iterable[Tensor]) -> str:
    return f"{sum(tensor.numel() * tensor.element_size() for tensor in tensors if not is_lazy(tensor)) / 1e6:,.1f}"
