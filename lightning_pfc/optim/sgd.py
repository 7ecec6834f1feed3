"""Stochastic gradient descent with momentum that leaves the centers alone that were not sampled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from torch.optim.sgd import sgd

from lightning_pfc.checked import checked
from lightning_pfc.optim.base import RowSparseOptimizer, check_options
from lightning_pfc.optim.row_formats import SCALE_SUFFIX, RowStorage, state_storage

MOMENTUM = "momentum_buffer"
VECTOR = 16
"""Floats that PyTorch's one-pass step takes at a time; a rest of a row would be rounded otherwise."""


@checked
class SparseSGD(RowSparseOptimizer):
    """SGD with momentum, Nesterov's or plain, and weight decay on the rows of the gradient only.

    For a row that is in the gradient, as in ``torch.optim.SGD``::

        g += weight_decay * w;  v = momentum * v + g;  w -= lr * (g + momentum * v if nesterov else v)

    For any other row nothing happens: no decay, no coasting on old momentum. This is the update of Partial FC (An et
    al., arXiv:2010.05222, and arXiv:2203.15565). With every row in the gradient it equals ``torch.optim.SGD``, and the
    keys of the state are the same.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate.
        momentum: Decay of the velocity; 0 keeps no state.
        weight_decay: Factor of the weights that is added to the gradient.
        nesterov: Look ahead along the velocity.
        state_dtype: How the velocity of centers is kept: ``"float32"``, ``"bfloat16"`` or ``"int8"`` with a scale per
            row, both with stochastic rounding. None keeps float32 (float64 beside float64 centers).
        rounding_seed: Of the stochastic rounding, which also depends on the step and the class, and on nothing else.
        update_in_backward: Update centers inside the backward pass, so that their gradient is never held. Not together
            with clipping by norm, accumulated gradients or a loss scaler.
        capturable: Count the steps on the device, so that a CUDA graph can hold the step, together with
            ``update_in_backward``; ``lr`` may be a tensor there, which a scheduler changes in place.

    Raises:
        ValueError: If an option is negative, or ``nesterov`` is set without momentum.
    """

    row_state_keys = frozenset({MOMENTUM, MOMENTUM + SCALE_SUFFIX})

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        state_dtype: str | None = None,
        rounding_seed: int = 0,
        update_in_backward: bool = False,
        capturable: bool = False,
    ) -> None:
        defaults: dict[str, Any] = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        defaults |= {"state_dtype": state_dtype, "rounding_seed": rounding_seed}
        super().__init__(params, {**defaults, "update_in_backward": update_in_backward, "capturable": capturable})

    def _check_group(self, group: dict[str, Any]) -> None:
        check_options(group, lr=0.0, momentum=0.0, weight_decay=0.0)
        if group["nesterov"] and group["momentum"] == 0:
            raise ValueError("nesterov=True needs momentum > 0; got momentum=0.")

    def _ensure_dense_state(self, param: Tensor, group: dict[str, Any]) -> None:
        if group["momentum"] != 0 and self.state[param].get(MOMENTUM) is None:
            self.state[param][MOMENTUM] = torch.zeros_like(param)

    def _step_dense(self, params: list[Tensor], group: dict[str, Any]) -> None:
        self._step_with(params, [p.grad for p in params if p.grad is not None], group, group["weight_decay"])

    def _step_with(self, params: list[Tensor], grads: list[Tensor], group: dict[str, Any], weight_decay: float) -> None:
        has_momentum = group["momentum"] != 0
        buffers: list[Tensor | None] = [self.state[p].get(MOMENTUM) if has_momentum else None for p in params]
        self._step_buffers(params, grads, buffers, group, weight_decay)
        if has_momentum:
            for param, buffer in zip(params, buffers, strict=True):
                self.state[param][MOMENTUM] = buffer

    @staticmethod
    def _step_buffers(
        params: list[Tensor],
        grads: list[Tensor],
        buffers: list[Tensor | None],
        group: dict[str, Any],
        weight_decay: float,
        *,
        fused: bool | None = None,
    ) -> None:
        sgd(
            params,
            grads,
            buffers,
            fused=fused,
            lr=group["lr"],
            momentum=group["momentum"],
            weight_decay=weight_decay,
            nesterov=group["nesterov"],
            dampening=0.0,
            maximize=False,
        )

    def _row_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, tuple[torch.Size, RowStorage]]:
        if group["momentum"] == 0:
            return {}
        return {MOMENTUM: (param.shape, state_storage(group["state_dtype"], param.dtype))}

    def _update_rows(
        self, weight: Tensor, state: dict[str, Tensor], grad: Tensor, group: dict[str, Any], step: int
    ) -> None:
        if group["momentum"] != 0 and _one_pass_rounds_alike(weight, grad, state[MOMENTUM]):
            options = {**group, "lr": float(group["lr"])}
            self._step_buffers([weight], [grad], [state[MOMENTUM]], options, group["weight_decay"], fused=True)
            return
        if group["weight_decay"] != 0:
            grad = grad.add(weight, alpha=group["weight_decay"])
        if group["momentum"] != 0:
            velocity = state[MOMENTUM].mul_(group["momentum"]).add_(grad)
            grad = grad.add(velocity, alpha=group["momentum"]) if group["nesterov"] else velocity
        weight.add_(grad, alpha=-float(group["lr"]))


def _one_pass_rounds_alike(*tensors: Tensor) -> bool:
    """Whether PyTorch's one-pass step of a CPU gives rows (n, D) the same bits in whatever chunks they come."""
    return all(
        type(rows) is Tensor
        and (rows.device.type, rows.dtype) == ("cpu", torch.float32)
        and rows.is_contiguous()  # it would read others wrongly, without a word
        and rows.dim() == 2
        and rows.shape[1] % VECTOR == 0
        for rows in tensors
    )
