"""What a checkpoint is read into: the tensors of the live module and of its optimizers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim import Optimizer

from lightning_pfc.checkpoint import CheckpointError
from lightning_pfc.checkpoint.manifest_entries import TensorEntry, dtype_of
from lightning_pfc.checkpoint.split_tree import ClassRows
from lightning_pfc.distributed import ClassShard
from lightning_pfc.distributed.class_rows import declare_class_rows
from lightning_pfc.heads.partial_fc import PartialFC
from lightning_pfc.optim.row_state import has_entry_per_class
from lightning_pfc.storage.row_files import row_files

MODEL, OPTIMIZERS = "state_dict/", "optimizer_states/"
"""Where in a checkpoint the weights and the states of optimizers are."""


class LiveTensors:
    """Tells the loader which tensors of the live module to fill, so that no second copy of them is made."""

    def __init__(
        self, module: LightningModule | None, heads: Iterable[tuple[str, PartialFC]], *, fitting: bool
    ) -> None:
        self.live = dict(module.state_dict()) if module is not None else {}
        self._shards = {f"{name}.{tensor}": head.shard for name, head in heads for tensor in head.sharded_tensors()}
        self.fitting = fitting

    def __call__(self, key: str, stored: TensorEntry) -> Tensor | ClassRows | None:
        """What a stored tensor is read into; None makes a new one.

        Raises:
            CheckpointError: if a head has another number of classes.
        """
        if not key.startswith(MODEL):
            return None
        name = key.removeprefix(MODEL)
        live, shard = self.live.get(name), self._shards.get(name)
        if shard is not None and stored.shape[0] != shard.num_classes:
            raise CheckpointError(
                f"the checkpoint has {stored.shape[0]} classes in {name}, the model has {shard.num_classes}. Give the "
                f"model num_classes={stored.shape[0]}, or change the checkpoint with pfc-ckpt append, drop or merge."
            )
        shape = tuple(stored.shape if shard is None else (shard.num_local, *stored.shape[1:]))
        if live is None or tuple(live.shape) != shape or live.dtype != dtype_of(stored.dtype):
            return None
        return live if shard is None else ClassRows(live, shard)

    def wants(self, key: str) -> bool:
        """Whether a tensor is needed at all: nothing but ``fit`` restores optimizers."""
        return self.fitting or not key.startswith(OPTIMIZERS)


def sharded_indices(
    optimizer: Optimizer | LightningOptimizer, heads: Iterable[tuple[str, PartialFC]]
) -> Iterator[tuple[int, ClassShard]]:
    """Of the heads' parameters in an optimizer: the number in its state dict, and the shard."""
    shards = {id(tensor): head.shard for _, head in heads for tensor in head.sharded_tensors().values()}
    parameters = (parameter for group in unwrapped(optimizer).param_groups for parameter in group["params"])
    yield from ((index, shards[id(each)]) for index, each in enumerate(parameters) if id(each) in shards)


def unwrapped(optimizer: Optimizer | LightningOptimizer) -> Optimizer:
    """The optimizer that Lightning has wrapped."""
    return optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer


def declared_state(optimizer: Optimizer, state: Mapping[str, Any], shard: ClassShard) -> dict[str, Any]:
    """The state of a head's parameter, declared where it has an entry per class; objects that nobody else holds."""
    found = dict(state)
    for key, value in state.items():
        if has_entry_per_class(unwrapped(optimizer), key, value, shard.num_local):
            found[key] = value.detach()
            declare_class_rows(found[key], shard)
    return found


def take_out_of_file(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Give an optimizer tensors of its own, where it would go on with those that still lie in a file.

    Optimizers of this package copy the state of rows that are kept in files by themselves.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in state["state"].items():
        if isinstance(index, int) and index < len(parameters) and row_files(parameters[index]) is None:
            values.update({key: value.clone() for key, value in values.items() if isinstance(value, Tensor)})
