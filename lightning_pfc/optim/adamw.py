"""AdamW that leaves the centers alone that were not sampled."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from lightning_pfc.checked import checked
from lightning_pfc.optim.base import RowSparseOptimizer, check_options
from lightning_pfc.optim.row_formats import SCALE_SUFFIX, RowStorage, state_storage

MEAN, SQUARE, LAST = "exp_avg", "exp_avg_sq", "last_step"

MissedSteps = Literal["skip", "decay"]


@checked
class SparseAdamW(RowSparseOptimizer):
    """AdamW on the rows of the gradient only.

    Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101, algorithm 2). A row that is not in the
    gradient keeps its weight. The bias correction counts the steps of the optimizer, not those of the row, as the
    sparse AdamW of Partial FC does. With every row in the gradient it equals ``torch.optim.AdamW``, and the keys of the
    state are the same.

    What the moments of a row make of the ``k`` steps that it missed is the one choice:

    * ``"skip"``, as in Partial FC: nothing. Its mean square is then that of the steps with a gradient only. A row that
      is drawn seldom, and as a negative, is divided by the root of a small number, and makes steps as long as one that
      sees its own images; the first is ``lr * (1 - beta1) / sqrt(1 - beta2)``, 3.2 ``lr`` for the default betas.
    * ``"decay"``: a step without the row was a gradient of zero. When it is sampled again, ``m *= beta1^k`` and
      ``v *= beta2^k`` come first, so the moments are those of the dense optimizer, at the cost of the rows that are
      sampled and one number more per row. What is left out of the dense optimizer is the coasting of the weights.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate.
        betas: Decay of the mean of the gradient and of the mean of its square.
        eps: Added to the denominator.
        weight_decay: Factor of ``lr * w`` that is taken from the weights.
        missed_steps: What a row's moments make of the steps that it missed: ``"skip"`` or ``"decay"``.
        state_dtype: How the moments of centers are kept: ``"float32"``, ``"bfloat16"`` or ``"int8"`` with a scale per
            row, both with stochastic rounding; of the squares, the 8 bits hold the root. None keeps float32 (float64
            beside float64 centers).
        rounding_seed: Of the stochastic rounding, which also depends on the step and the class, and on nothing else.
        update_in_backward: Update centers inside the backward pass, so that their gradient is never held. Not together
            with clipping by norm, accumulated gradients or a loss scaler.
        capturable: Count the steps on the device, so that a CUDA graph can hold the step, together with
            ``update_in_backward``; ``lr`` may be a tensor there, which a scheduler changes in place.
        fused: One pass over all parameters that are not stepped by rows, as in ``torch.optim.AdamW``.

    Raises:
        ValueError: If an option is negative, a beta is not below 1, or ``missed_steps`` neither of its two words.
    """

    row_state_keys = frozenset({MEAN, MEAN + SCALE_SUFFIX, SQUARE, SQUARE + SCALE_SUFFIX, LAST})

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        missed_steps: MissedSteps = "skip",
        state_dtype: str | None = None,
        rounding_seed: int = 0,
        update_in_backward: bool = False,
        capturable: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "fused": fused}
        defaults |= {"missed_steps": missed_steps, "state_dtype": state_dtype, "rounding_seed": rounding_seed}
        super().__init__(params, {**defaults, "update_in_backward": update_in_backward, "capturable": capturable})

    def _check_group(self, group: dict[str, Any]) -> None:
        check_options(group, lr=0.0, eps=0.0, weight_decay=0.0)
        betas = group["betas"]
        if len(betas) != 2 or not all(0.0 <= float(beta) < 1.0 for beta in betas):
            raise ValueError(f"betas={betas} is not allowed; give two numbers from 0 up to, but not including, 1.")
        check_missed_steps(group["missed_steps"])

    def _ensure_dense_state(self, param: Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        if "step" not in state:
            state["step"] = torch.zeros((), device=param.device if group["capturable"] else "cpu")
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
            fused=group["fused"],
            capturable=group["capturable"] and params[0].device.type == "cuda",
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _row_state(self, param: Tensor, group: dict[str, Any]) -> dict[str, tuple[torch.Size, RowStorage]]:
        state = {
            MEAN: (param.shape, state_storage(group["state_dtype"], param.dtype)),
            SQUARE: (param.shape, state_storage(group["state_dtype"], param.dtype, squares=True)),
        }
        if group["missed_steps"] == "decay":
            state[LAST] = (param.shape[:1], state_storage(None, param.dtype))
        return state

    def _update_rows(
        self, weight: Tensor, state: dict[str, Tensor], grad: Tensor, group: dict[str, Any], step: int
    ) -> None:
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        if group["missed_steps"] == "decay":
            last = state[LAST].view(-1, *[1] * (grad.dim() - 1))
            # 0 is a row that was never sampled, or one whose state comes from a run that did not count
            missed = torch.where(last > 0, step - 1 - last, 0.0)
            state[MEAN].mul_(beta1**missed)
            state[SQUARE].mul_(beta2**missed)
            state[LAST].fill_(step)
        weight.mul_(1 - lr * group["weight_decay"])
        mean = state[MEAN].lerp_(grad, 1 - beta1)
        square = state[SQUARE].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        scale = (1 - beta2**step) ** 0.5
        weight.addcdiv_(mean, square.sqrt().div_(scale).add_(group["eps"]), value=-lr / (1 - beta1**step))


def check_missed_steps(word: object) -> None:
    """Raises ValueError for a word that is none of :data:`MissedSteps`."""
    if word not in get_args(MissedSteps):
        raise ValueError(f"missed_steps={word!r} is not allowed; give 'skip' or 'decay'.")
