"""Margins on the target's cosine: their gradients, and angles beyond pi."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_pfc.kernels.library import takes_kernels
from lightning_pfc.kernels.margins import margin_logits

MarginGrad = Literal["exact", "straight_through"]
BeyondPi = Literal["psi", "cosine"]

# d acos(x)/dx is infinite at |x| = 1; one float32 step inside, it is finite and the angle is off by at most 5e-4 rad.
COSINE_LIMIT = 1.0 - 1e-7


def with_margin_grad(cosine: Tensor, modified: Tensor, margin_grad: MarginGrad) -> Tensor:
    """``modified`` with its own gradient ("exact"), or with the gradient of ``cosine`` ("straight_through").

    Straight-through is what InsightFace does since 2022-12: the margin is seen by the loss, not by the derivative.
    """
    return modified if margin_grad == "exact" else cosine + (modified - cosine).detach()


def with_easy_margin(cosine: Tensor, modified: Tensor) -> Tensor:
    """``modified`` where the cosine is above 0, the cosine itself elsewhere: no margin beyond a right angle."""
    return torch.where(cosine > 0.0, modified, cosine)


def angle(cosine: Tensor) -> Tensor:
    """The angle arccos(cosine) in radians, with the cosine kept one float32 step inside (-1, 1) for its derivative."""
    return torch.arccos(cosine.clamp(-COSINE_LIMIT, COSINE_LIMIT))


def angular_margin(
    cosine: Tensor, scale: float, m2: float | Tensor, m3: float | Tensor, margin_grad: MarginGrad
) -> Tensor:
    """``scale (cos(theta + m2) - m3)`` from cos(theta), (B,) -> (B,): one kernel on an accelerator.

    The derivative is that of ``margin_grad``; cosines beyond :data:`COSINE_LIMIT` count as that.
    """
    if takes_kernels(cosine) and not isinstance(m2, Tensor) and not isinstance(m3, Tensor):
        return margin_logits(cosine, scale, m2, m3, COSINE_LIMIT, exact=margin_grad == "exact")
    modified = torch.cos(angle(cosine) + m2) - m3
    return scale * with_margin_grad(cosine, modified, margin_grad)


def psi(angle: Tensor) -> Tensor:
    """The cosine of an angle in [0, pi], continued so that it falls for ever (SphereFace, arXiv:1704.08063, eq. 8).

    ``(-1)^k cos(angle) - 2k`` for angles in ``[k pi, (k+1) pi]``. A factor on the angle takes it beyond pi where
    samples start: the cosine itself would rise again there, and the loss would fall as a sample turns away from its
    center.
    """
    k = torch.floor(angle.detach() / torch.pi)
    return (1.0 - 2.0 * torch.remainder(k, 2.0)) * torch.cos(angle) - 2.0 * k
