"""Sub-center ArcFace: K centers per class, so that noisy images can gather around a center of their own."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_pfc.losses.arcface import ArcFace


@dataclass(frozen=True, kw_only=True)
class SubCenterArcFace(ArcFace):
    """ArcFace on ``cos_j = max_k cos(x, w_jk)`` over K centers per class (Sub-center ArcFace, ECCV 2020, eq. 3 and 4).

    The K centers of a class lie side by side in one row of the head's weight, (c, K D): they stay together on a
    shard, are sampled together, and count as one row to row-wise optimizers. Only the nearest center of a class gets
    a gradient.

    Args:
        scale: s > 0.
        centers: K >= 1; 3 in the paper.
        margin, margin_grad, label_smoothing, interclass_filter: see :class:`ArcFace`.
    """

    centers: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.centers, bool) or not isinstance(self.centers, int) or self.centers < 1:
            raise ValueError(f"SubCenterArcFace(centers={self.centers!r}): centers must be an integer of at least 1.")

    @property
    def num_centers(self) -> int:  # type: ignore[override]
        """K."""
        return self.centers
