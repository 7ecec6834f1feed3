"""AdamW that leaves the centers alone that were not sampled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from lightning_pfc.optim.base import RowSparseOptimizer, check_options
from lightning_pfc.optim.storage import SCALE_SUFFIX, RowStorage, state_storage

MEAN, SQUARE = "exp_avg", "exp_avg_sq"


class SparseAdamW(RowSparseOptimizer):
    """AdamW on the rows of the gradient only.

    Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101, algorithm 2). A row that is not in the
    gradient keeps its weight and both moments: they do not decay. The bias correction counts the steps of the
    optimizer, not those of the row, as the sparse AdamW of Partial FC does. (A row that is first sampled late in
    training therefore begins with a step of ``lr * (1 - beta1) / sqrt(1 - beta2)``, 3.2 ``lr`` for the default betas.)
    With every row in the gradient it equals ``torch.optim.AdamW``, and the keys of the state are the same.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate.
        betas: Decay of the mean of the gradient and of the mean of its square.
        eps: Added to the denominator.
        weight_decay: Factor of ``lr * w`` that is taken from the weights.
        state_dtype: How the moments of centers are kept: ``"float32"``, ``"bfloat16"`` or ``"int8"`` with a scale per
            row, both with stochastic rounding; of the squares, the 8 bits hold the root. None keeps float32 (float64
            beside float64 centers).
        rounding_seed: Of the stochastic rounding, which also depends on the step and the class, and on nothing else.
        update_in_backward: Update centers inside the backward pass, so that their gradient is never held. Not together
            with clipping by norm, accumulated gradients or a loss scaler.

    Raises:
        ValueError: If an option is negative, or a beta is not below 1.
    """

    row_state_keys = frozenset({MEAN, MEAN + SCALE_SUFFIX, SQUARE, SQUARE + SCALE_SUFFIX})

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        state_dtype: str | None = None,
        rounding_seed: int = 0,
        update_in_backward: bool = False,
    ) -> None:
        defaults: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        defaults |= {"state_dtype": state_dtype, "rounding_seed": rounding_seed}
        super().__init__(params, {**defaults, "update_in_backward": update_in_backward})

    def _check_group(self, group: dict[str, Any]) -> None:
        check_options(group, lr=0.0, eps=0.0, weight_decay=0.0)
        betas = group["betas"]
        if len(betas) != 2 or not all(0.0 <= float(beta) < 1.0 for beta in betas):
            raise ValueError(f"betas={betas} is not allowed; give two numbers from 0 up to, but not including, 1.")

    def _ensure_dense_state(self, param: Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        if "step" not in state:
            state["step"] = torch.tensor(0.0)
            state[MEAN] = torch.zeros_like(param, memory_format=torch.preserve_format)
            state[SQUARE] = torch.zeros_like(param, memory_format=torch.preserve_format)

    def _step_dense(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for param in params:
            self._ensure_dense_state(param, group)
        states = [self.state[param] for param in params]
        adamw(
            params,
            [p.grad for p in params if p.grad is not None],
            [state[MEAN] for state in states],
            [state[SQUARE] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _row_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, tuple[torch.Size, RowStorage]]:
        return {
            MEAN: (param.shape, state_storage(group["state_dtype"], param.dtype)),
            SQUARE: (param.shape, state_storage(group["state_dtype"], param.dtype, squares=True)),
        }

    def _update_rows(
        self, weight: Tensor, state: dict[str, Tensor], grad: Tensor, group: dict[str, Any], step: int
    ) -> None:
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        weight.mul_(1 - lr * group["weight_decay"])
        mean = state[MEAN].lerp_(grad, 1 - beta1)
        square = state[SQUARE].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        scale = (1 - beta2**step) ** 0.5
        weight.addcdiv_(mean, square.sqrt().div_(scale).add_(group["eps"]), value=-lr / (1 - beta1**step))
