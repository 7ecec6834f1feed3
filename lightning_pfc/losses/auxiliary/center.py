"""Center loss: embeddings are drawn to the running mean of their class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lightning_pfc.checked import checked
from lightning_pfc.losses.auxiliary.base import AuxiliaryLoss, unit


@checked
@dataclass(frozen=True, kw_only=True)
class Center(AuxiliaryLoss):
    """``1/2 |x_i - c_y|^2``, with centers of its own that follow the embeddings (center loss, ECCV 2016, eq. 2 to 4).

    After a training step ``c_j`` moves by ``-rate sum_{y_i = j} (c_j - x_i) / (1 + n_j)``, n_j being the number of
    rows of class j in the batch of all ranks. The centers begin at 0, are sharded as those of the head are, and are
    part of the
    checkpoint: D more numbers a class. One all-reduce of (B, D) a step.

    Args:
        weight: see :class:`AuxiliaryLoss`; 0.003 in the paper, which sums over the batch where this takes the mean.
        rate: how fast centers follow, in (0, 1]; 0.5 in the paper.
        normalize: compare unit vectors, which suits a head with cosines, or the embeddings as they are.
    """

    weight: float = 0.1
    rate: float = 0.5
    normalize: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("rate", 0.0, open_low=True)
        if self.rate > 1.0:
            raise ValueError(f"Center(rate={self.rate!r}): rate must be at most 1.")

    def class_buffers(self, embedding_dim: int) -> dict[str, tuple[int, ...]]:
        """``center``: (D,)."""
        return {"center": (embedding_dim,)}

    def __call__(self, embeddings: Tensor, labels: Tensor, memory: Mapping[str, Tensor] | None = None) -> Tensor:
        """As :class:`AuxiliaryLoss`."""
        assert memory is not None
        x = unit(embeddings) if self.normalize else embeddings
        return 0.5 * (x - memory["center"].to(x.dtype)).square().sum(1).mean()

    def updated_class_buffers(
        self, embeddings: Tensor, labels: Tensor, memory: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The moved centers."""
        x = unit(embeddings) if self.normalize else embeddings
        center = memory["center"].to(x.dtype)
        same = (labels[:, None] == labels[None, :]).to(x.dtype)
        count = same.sum(1, keepdim=True)
        return {"center": center - self.rate * (count * center - same @ x) / (1.0 + count)}
