"""Centers of length one, and the gradient of a center from that of its unit row.

Unit rows that may have new storage are one pass over the rows on a CPU, by the function that PyTorch has for weight
normalization (arXiv:1602.07868), whose gain is 1 here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_pfc.kernels.library import takes_kernels
from lightning_pfc.kernels.unit_rows import NORM_EPS, inverse_norms, project_rows_

_normalize: Any = getattr(torch, "_weight_norm_interface", None)


def unit_rows(rows: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rows of length one.

    Args:
        rows: (n, D) float32 or float64.
        out: (n, D) for the result; None for new storage.

    Returns:
        ``rows / max(|row|, 1e-12)`` (n, D), and ``1 / max(|row|, 1e-12)`` (n,).
    """
    if out is None and _has_one_pass(rows):
        units, norms = _normalize(rows, rows.new_ones((rows.shape[0], 1)), 0)
        if float(norms.min()) >= NORM_EPS:  # not so either for a NaN
            return units, norms.view(-1).reciprocal_()
    inverse = inverse_norms(rows)
    return torch.mul(rows, inverse[:, None], out=out), inverse


def center_gradient_(unit_grad: Tensor, rows: Tensor, inverse: Tensor, room: Tensor | None = None) -> Tensor:
    """The centers' gradient (n, D), ``(g - u (u.g)) / |w|``, in place of ``unit_grad``.

    Args:
        unit_grad: (n, D) g, gradient of the unit rows u; becomes the result.
        rows: (n, D) centers w in the dtype of ``unit_grad``.
        inverse: (n,) from :func:`unit_rows`. A row shorter than 1e-12 is scaled by a constant, so nothing is
            projected out of its gradient.
        room: (n, D) for what is computed on the way; None for new storage.
    """
    if unit_grad.device.type != "cpu":
        return project_rows_(unit_grad, rows, kernels=None if takes_kernels(unit_grad) else ())
    along = torch.mul(unit_grad, rows, out=room).sum(1).mul_(inverse).mul_(inverse)
    along = torch.where(inverse < 1.0 / NORM_EPS, along, 0.0)
    return unit_grad.addcmul_(rows, along[:, None], value=-1.0).mul_(inverse[:, None])


def _has_one_pass(rows: Tensor) -> bool:
    return (
        _normalize is not None
        and type(rows) is Tensor
        and rows.device.type == "cpu"
        and rows.is_contiguous()
        and rows.numel() > 0
    )
