"""LARS: every layer, and every center, takes steps in proportion to its own length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import override

from lightning_pfc.checked import checked
from lightning_pfc.optim.base import check_options
from lightning_pfc.optim.sgd import SparseSGD


@checked
class LARS(SparseSGD):
    """SGD with momentum and a rate of its own for each layer (You et al., arXiv:1708.03888, eq. 6).

    For a parameter of the backbone with more than one dimension::

        g += weight_decay * w;  g *= trust * |w| / (|grad| + weight_decay |w|);  v = momentum * v + g;  w -= lr * v

    For a head the same row by row: the norms are those of a center and of its gradient, so what a center does depends
    on nothing but itself, on any number of ranks, and one that was not sampled stays as it is. Scales, shifts and
    biases, and whatever has no length or no gradient, are stepped as by SGD. The trust ratio stands inside the
    momentum, and the learning rate outside, as is usual in PyTorch; in the paper both are inside, which is the same
    while the rate does not change.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate; the layers' own rates are multiples of it, so it is larger than for SGD.
        momentum: Decay of the velocity; 0 keeps no state.
        weight_decay: Factor of the weights that is added to the gradient.
        nesterov: Look ahead along the velocity.
        trust: The trust coefficient, > 0; 0.001 in the paper.
        clip: LARC: the rate of a layer is ``min(trust ratio, lr)`` instead of ``lr * trust ratio``, so that none learns
            faster than by SGD; ``lr`` is then as large as for SGD.
        state_dtype, rounding_seed, update_in_backward: As in :class:`SparseSGD`.

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        trust: float = 0.001,
        clip: bool = False,
        state_dtype: str | None = None,
        rounding_seed: int = 0,
        update_in_backward: bool = False,
    ) -> None:
        defaults: dict[str, Any] = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        defaults |= {"trust": trust, "clip": clip, "state_dtype": state_dtype, "rounding_seed": rounding_seed}
        # past the constructor of SGD, which knows no defaults but its own
        super(SparseSGD, self).__init__(params, {**defaults, "update_in_backward": update_in_backward})

    @override
    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        check_options(group, trust=0.0)
        if group["trust"] == 0:
            raise ValueError("trust=0 would take no step at all; give trust > 0, 0.001 as in the paper.")

    @override
    def _step_dense(self, params: list[Tensor], group: dict[str, Any]) -> None:
        plain = [param for param in params if param.dim() <= 1]
        if plain:
            super()._step_dense(plain, group)
        layers = [param for param in params if param.dim() > 1]
        if not layers:
            return
        grads = [param.grad for param in layers if param.grad is not None]
        lengths = torch._foreach_norm(layers)
        slopes = torch._foreach_norm(grads)
        scaled = [
            grad.add(param, alpha=group["weight_decay"]).mul_(_ratio(length, slope, group))
            for param, grad, length, slope in zip(layers, grads, lengths, slopes, strict=True)
        ]
        self._step_with(layers, scaled, group, weight_decay=0.0)

    @override
    def _update_rows(
        self, weight: Tensor, state: dict[str, Tensor], grad: Tensor, group: dict[str, Any], step: int
    ) -> None:
        if weight.dim() > 1:
            wide = weight.flatten(1)
            ratio = _ratio(wide.norm(dim=1), grad.flatten(1).norm(dim=1), group)
            grad = grad.add(weight, alpha=group["weight_decay"]).mul_(ratio.view(-1, *[1] * (weight.dim() - 1)))
            group = {**group, "weight_decay": 0.0}
        super()._update_rows(weight, state, grad, group, step)


def _ratio(length: Tensor, slope: Tensor, group: dict[str, Any]) -> Tensor:
    """The factor that makes ``lr`` the rate of each layer or row; 1 where there is no length or no gradient."""
    ratio = group["trust"] * length / (slope + group["weight_decay"] * length).clamp(min=1e-30)
    if group["clip"]:
        ratio = (ratio / max(group["lr"], 1e-30)).clamp(max=1.0)  # LARC: lr * min(ratio / lr, 1) = min(ratio, lr)
    return torch.where((length > 0) & (slope > 0), ratio, 1.0)
