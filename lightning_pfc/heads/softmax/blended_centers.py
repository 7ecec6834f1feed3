"""Centers mixed with what is remembered of their class (VPL), and the gradient back to the centers themselves."""

from __future__ import annotations

import torch
from torch import Tensor

_EPS = 1e-12


class BlendedCenters:
    """``u_j = (1 - a_j) w_j/|w_j| + a_j f_j`` in place of the centers w of one step.

    Args:
        feature: (c, D), the remembered unit vectors f of this rank's classes; read again in the backward pass.
        share: (c,), a: 0 leaves a center as it is.
    """

    def __init__(self, feature: Tensor, share: Tensor) -> None:
        self.feature, self.share = feature, share
        self._changed: list[tuple[Tensor, Tensor]] = []

    def keep(self, ids: Tensor, before: Tensor) -> None:
        """Go on with ``before`` (B, D) for the local rows ``ids`` (B,), which the memory is about to overwrite."""
        order = ids.argsort()
        self._changed.append((ids[order].contiguous(), before[order]))

    def blend(self, rows: Tensor, ids: slice | Tensor) -> Tensor:
        """Centers (n, D) of the local rows ``ids`` -> blended (n, D), in new storage."""
        share = self.share[ids].to(rows.dtype)[:, None]
        norm: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        return rows / norm.clamp(min=_EPS) * (1.0 - share) + self._features(ids).to(rows.dtype) * share

    def chain_(self, grad: Tensor, rows: Tensor, ids: slice | Tensor) -> Tensor:
        """Turn the blended centers' gradient (n, D) into that of the centers ``rows`` (n, D), in place."""
        norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_(min=_EPS)
        direction = rows / norm
        grad.mul_((1.0 - self.share[ids].to(grad.dtype))[:, None])
        grad.sub_(direction * (direction * grad).sum(1, keepdim=True))
        return grad.div_(norm)

    def _features(self, ids: slice | Tensor) -> Tensor:
        found = self.feature[ids]
        rows = torch.arange(ids.start, ids.stop, device=found.device) if isinstance(ids, slice) else ids
        for changed, before in reversed(self._changed):  # what was there first comes last
            place = torch.searchsorted(changed, rows).clamp_(max=changed.shape[0] - 1)
            found = torch.where((changed[place] == rows)[:, None], before[place], found)
        return found
