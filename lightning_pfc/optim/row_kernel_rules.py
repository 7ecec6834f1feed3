"""The rules of the row-sparse optimizers, as functions of a few rows: what changes, changes in place.

Shape letters: ``n`` rows, ``*rest`` the shape of one row.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sgd_(
    weight: Tensor,
    velocity: Tensor | None,
    grad: Tensor,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """Stochastic gradient descent, as ``torch.optim.SGD``.

    Args:
        weight: ``(n, *rest)``.
        velocity: ``(n, *rest)``, or None without momentum.
        grad: ``(n, *rest)``, left as it is.
        lr: learning rate.
        momentum: decay of the velocity.
        weight_decay: factor of the weights that is added to the gradient.
        nesterov: look ahead along the velocity.
    """
    if weight_decay != 0:
        grad = grad.add(weight, alpha=weight_decay)
    if velocity is not None:
        velocity.mul_(momentum).add_(grad)
        grad = grad.add(velocity, alpha=momentum) if nesterov else velocity
    weight.add_(grad, alpha=-lr)


def adamw_(
    weight: Tensor,
    mean: Tensor,
    square: Tensor,
    last: Tensor | None,
    grad: Tensor,
    step: int,
    *,
    lr: float,
    weight_decay: float,
    eps: float,
    beta1: float,
    beta2: float,
) -> None:
    """AdamW, as ``torch.optim.AdamW``; with ``last``, moments decay over the steps that a row missed.

    Args:
        weight: ``(n, *rest)``.
        mean: ``(n, *rest)``, of the gradient.
        square: ``(n, *rest)``, mean of its square.
        last: ``(n,)``, the last step of each row, 0 for none or unknown; or None.
        grad: ``(n, *rest)``, left as it is.
        step: number of this step, from 1.
        lr: learning rate.
        weight_decay: factor of ``lr * weight`` that is taken from the weights.
        eps: added to the denominator.
        beta1: decay of ``mean``.
        beta2: decay of ``square``.
    """
    if last is not None:
        before = last.view(-1, *[1] * (grad.dim() - 1))
        # 0 is a row that was never sampled, or one whose state comes from a run that did not count
        missed = torch.where(before > 0, step - 1 - before, 0.0)
        mean.mul_(beta1**missed)
        square.mul_(beta2**missed)
        last.fill_(step)
    weight.mul_(1 - lr * weight_decay)
    mean.lerp_(grad, 1 - beta1)
    square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    scale = (1 - beta2**step) ** 0.5
    weight.addcdiv_(mean, square.sqrt().div_(scale).add_(eps), value=-lr / (1 - beta1**step))


def adagrad_(weight: Tensor, total: Tensor, grad: Tensor, *, lr: float, weight_decay: float, eps: float) -> None:
    """Adagrad with one number a row.

    Args:
        weight: ``(n, *rest)``.
        total: ``(n,)``, sums of the mean squares of the rows' gradients.
        grad: ``(n, *rest)``, left as it is.
        lr: learning rate.
        weight_decay: factor of the weights that is added to the gradient.
        eps: added to the denominator.
    """
    if weight_decay != 0:
        grad = grad.add(weight, alpha=weight_decay)
    flat = grad.flatten(1) if grad.dim() > 1 else grad[:, None]
    total.add_(torch.linalg.vecdot(flat, flat), alpha=1 / flat.shape[1])
    scale = total.sqrt().add_(eps)
    weight.addcdiv_(grad, scale.view(-1, *[1] * (grad.dim() - 1)), value=-lr)
