"""Adagrad with one number of state per center."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adagrad import adagrad
from torch.optim.optimizer import ParamsT

from lightning_pfc.checked import checked
from lightning_pfc.optim.base import RowSparseOptimizer, check_options
from lightning_pfc.optim.row_formats import RowStorage, state_storage

ROW_SUM, SUM = "row_sum", "sum"


@checked
class RowWiseAdagrad(RowSparseOptimizer):
    """Adagrad whose state is one number per row: the sum of the mean squares of the row's gradients.

    For a row ``g`` of the gradient, of ``D`` elements::

        g += weight_decay * w;  h += sum(g * g) / D;  w -= lr * g / (sqrt(h) + eps)

    It is the usual choice for embedding tables of recommenders (Mudigere et al., arXiv:2104.05158, section 2.1): the
    state of 10 million centers takes 40 MB, where one velocity of 512 floats each takes 20 GB. Rows that are not in the
    gradient are untouched. Parameters with dense gradients follow ``torch.optim.Adagrad``, one number per element.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate. The first step of a row moves it by ``lr`` times the square root of ``D``, whatever its
            gradient.
        eps: Added to the denominator.
        weight_decay: Factor of the weights that is added to the gradient.
        rounding_seed: Of the stochastic rounding of centers in bfloat16, which also depends on the step and the class.
        update_in_backward: Update centers inside the backward pass, so that their gradient is never held. Not together
            with clipping by norm, accumulated gradients or a loss scaler.
        capturable: Count the steps on the device, so that a CUDA graph can hold the step, together with
            ``update_in_backward``; ``lr`` may be a tensor there, which a scheduler changes in place.

    Raises:
        ValueError: If an option is negative.
    """

    row_state_keys = frozenset({ROW_SUM})

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        *,
        rounding_seed: int = 0,
        update_in_backward: bool = False,
        capturable: bool = False,
    ) -> None:
        defaults: dict[str, Any] = {"lr": lr, "eps": eps, "weight_decay": weight_decay, "rounding_seed": rounding_seed}
        super().__init__(params, {**defaults, "update_in_backward": update_in_backward, "capturable": capturable})

    def _check_group(self, group: dict[str, Any]) -> None:
        check_options(group, lr=0.0, eps=0.0, weight_decay=0.0)

    def _ensure_dense_state(self, param: Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        if "step" not in state:
            state["step"] = torch.tensor(0.0)
            state[SUM] = torch.zeros_like(param, memory_format=torch.preserve_format)

    def _step_dense(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for param in params:
            self._ensure_dense_state(param, group)
        adagrad(
            params,
            [p.grad for p in params if p.grad is not None],
            [self.state[p][SUM] for p in params],
            [self.state[p]["step"] for p in params],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            lr_decay=0.0,
            maximize=False,
        )

    def _is_stepped_by_rows(self, param: Tensor) -> bool:
        # The two kinds of state differ in shape: a parameter that began by rows goes on by rows.
        return ROW_SUM in self.state.get(param, ()) or super()._is_stepped_by_rows(param)

    def _row_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, tuple[torch.Size, RowStorage]]:
        return {ROW_SUM: (param.shape[:1], state_storage(None, param.dtype))}

    def _update_rows(
        self, weight: Tensor, state: dict[str, Tensor], grad: Tensor, group: dict[str, Any], step: int
    ) -> None:
        if group["weight_decay"] != 0:
            grad = grad.add(weight, alpha=group["weight_decay"])
        flat = grad.flatten(1) if grad.dim() > 1 else grad[:, None]
        total = state[ROW_SUM].add_(torch.linalg.vecdot(flat, flat), alpha=1 / flat.shape[1])
        scale = total.sqrt().add_(group["eps"])
        weight.addcdiv_(grad, scale.view(-1, *[1] * (grad.dim() - 1)), value=-float(group["lr"]))
