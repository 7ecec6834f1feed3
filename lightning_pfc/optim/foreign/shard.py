"""What a parameter is a shard of, and the start of watching over what others do with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lightning_pfc.distributed import ClassShard, Comm
from lightning_pfc.distributed.class_rows import class_rows
from lightning_pfc.optim.foreign.gradient import mark_gradient


@dataclass(frozen=True, eq=False)
class RowShard:
    """Which rows of a whole parameter these are, and who has the others.

    Attributes:
        rows: the range of rows, ``(start, stop)`` of ``num_classes``.
        comm: the ranks; ``comm.shard_group`` holds all rows once.
    """

    rows: ClassShard
    comm: Comm


def watch(param: Tensor) -> None:
    """Have norms over ``param``, which was declared to be rows of a whole, be those of the whole.

    From now on its gradient is a :class:`~lightning_pfc.optim.foreign.gradient.ShardGradient`, and every
    ``torch.optim.Optimizer`` that steps it is tried first, see :func:`~lightning_pfc.optim.foreign.steps.before_step`.
    No collective; doing it again changes nothing. A parameter of a single process is left alone.
    """
    if not isinstance(param, nn.Parameter) or row_shard(param) is None:
        return
    if mark_gradient not in (param._post_accumulate_grad_hooks or {}).values():
        trained = param.requires_grad
        param.requires_grad_()  # torch takes no hook for a frozen one, which may be thawed later
        param.register_post_accumulate_grad_hook(mark_gradient)  # type: ignore[no-untyped-call]
        param.requires_grad_(trained)
    _watch_optimizers()


def row_shard(param: Tensor) -> RowShard | None:
    """What :func:`watch` goes by; None of a parameter that every rank has whole."""
    record = class_rows(param)
    if record is None or record.comm is None or record.comm.shard_size == 1:
        return None
    return RowShard(record.shard, record.comm)


_hooked: list[torch.utils.hooks.RemovableHandle] = []


def _watch_optimizers() -> None:
    if _hooked:
        return
    from lightning_pfc.optim.foreign.steps import after_step, before_step

    _hooked.append(register_optimizer_step_pre_hook(before_step))
    _hooked.append(register_optimizer_step_post_hook(after_step))
