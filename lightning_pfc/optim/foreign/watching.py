"""The start of watching over what others do with a parameter that is the shard of one rank."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lightning_pfc.optim.foreign.gradient import mark_gradient
from lightning_pfc.optim.foreign.shard import row_shard
from lightning_pfc.optim.foreign.stated import watch_state
from lightning_pfc.optim.foreign.steps import after_step, before_step

_hooked: list[torch.utils.hooks.RemovableHandle] = []


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


def _watch_optimizers() -> None:
    if not _hooked:
        _hooked.append(register_optimizer_step_pre_hook(watch_state))
        _hooked.append(register_optimizer_step_pre_hook(before_step))
        _hooked.append(register_optimizer_step_post_hook(after_step))
