"""Clipping by one true norm: replicated gradients counted once, shards summed over the ranks that share the classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from lightning_pfc.distributed import Comm
from lightning_pfc.distributed.class_rows import class_rows
from lightning_pfc.optim.foreign.gradient import plain
from lightning_pfc.optim.rows import is_as_given, is_summed


@torch.no_grad()
def clip_grad_norm_(
    replicated: Sequence[Parameter],
    sharded: Sequence[Parameter],
    max_norm: float,
    comm: Comm,
    clip_sharded: bool = True,
) -> Tensor:
    """Scale gradients in place so that their joint 2-norm is at most ``max_norm``.

    One all-reduce of one number over ``comm.shard_group``, if ``sharded`` is not empty and ``clip_sharded``: every
    rank of it must call this, also one that has no gradient.

    Args:
        replicated: parameters whose gradients are the same on every rank.
        sharded: parameters of which every rank holds other rows; their gradients may be row-sparse.
        max_norm: the largest norm that is left as it is.
        comm: who holds the other rows.
        clip_sharded: whether the shards count in the norm and are scaled by it; otherwise they are left alone.

    Returns:
        The norm before clipping, a 0-d tensor, the same bits on every rank.
    """
    if not clip_sharded:
        sharded = ()
    device = next((p.device for p in (*replicated, *sharded)), torch.device("cpu"))
    shared, own = _gradient_values(replicated), _gradient_values(sharded)
    norm = torch.nn.utils.get_total_norm(shared).to(device)
    if sharded:
        square = torch.nn.utils.get_total_norm(own).to(device).float().square()
        if comm.shard_size > 1:
            dist.all_reduce(square, group=comm.shard_group)
        norm = (norm.float().square() + square).sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for values in (*shared, *own):
        values.mul_(factor.to(values.device, values.dtype))
    return norm


@torch.no_grad()
def clip_grad_value_(parameters: Iterable[Parameter], limit: float) -> None:
    """Clamp every gradient value into ``[-limit, limit]`` in place, also of row-sparse gradients. No collective."""
    for values in _gradient_values(parameters):
        values.clamp_(-limit, limit)


def _gradient_values(parameters: Iterable[Parameter]) -> list[Tensor]:
    """The numbers of the gradients, as tensors that share their memory; repeated rows are added up first."""
    found = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        gradient = plain(parameter.grad)
        if gradient.is_sparse:
            record = class_rows(parameter)
            if not (is_as_given(gradient, None if record is None else record.given) or is_summed(gradient)):
                parameter.grad = gradient = gradient.coalesce()
            gradient = gradient._values()
        found.append(gradient)
    return found
