"""NormFace: softmax over scaled cosines, no margin."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_pfc.losses.base import Loss


@dataclass(frozen=True, kw_only=True)
class NormFace(Loss):
    """Softmax cross entropy over scaled cosines, ``z_ij = s cos(theta_ij)`` (NormFace, arXiv:1704.06369, eq. 6)."""
