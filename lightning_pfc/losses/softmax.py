"""Plain softmax over dot products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lightning_pfc.losses.base import Loss


@dataclass(frozen=True, kw_only=True)
class Softmax(Loss):
    """Softmax cross entropy over plain dot products: ``z_ij = x_i . w_j (+ b_j)``, as ``nn.Linear`` and cross entropy.

    Args:
        bias: whether each class has a bias, sharded as the centers are.
        label_smoothing: see :class:`Loss`.
    """

    scale: float = 1.0
    bias: bool = False

    normalize: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_flag("bias")
        if self.interclass_filter is not None:
            raise ValueError(
                f"Softmax(interclass_filter={self.interclass_filter!r}): the filter compares cosines, and Softmax has "
                "none; use NormFace or a margin loss."
            )

    @property
    def has_bias(self) -> bool:  # type: ignore[override]
        """Whether the head keeps one bias a class."""
        return self.bias
