"""VPL: logits use the class center blended with a recent embedding of that class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_pfc.losses.arcface import ArcFace
from lightning_pfc.losses.batch_info import BatchInfo


@dataclass(frozen=True, kw_only=True)
class VPL(ArcFace):
    """ArcFace on ``(1 - a) w_j/|w_j| + a f_j`` (Variational Prototype Learning, CVPR 2021, section 3.3).

    ``f_j`` is the last embedding of class j, of length 1; it takes part while it is no older than ``lifetime`` steps,
    and not before step ``start``. It carries no gradient. The memory, D + 1 numbers per class, is sharded as the
    centers are and part of the checkpoint. Works with sampling too, where the published code asks for rate 1;
    evaluation uses the centers alone. One all-reduce of (B, D) per step.

    Args:
        scale: s > 0.
        share: a in [0, 1).
        start: training forwards before the first blend.
        lifetime: age in training forwards up to which an embedding is used.
        margin, margin_grad, label_smoothing, interclass_filter: see :class:`ArcFace`.
    """

    share: float = 0.15
    start: int = 8000
    lifetime: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("share", low=0.0, high=1.0, open_high=True)
        for name, least in (("start", 0), ("lifetime", 1)):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int) or count < least:
                raise ValueError(f"VPL({name}={count!r}): {name} must be an integer of at least {least}.")

    def class_buffers(self, embedding_dim: int) -> dict[str, tuple[int, ...]]:
        """``feature`` (D,), and ``seen`` (), the step it is from, counted from 1; 0 is never."""
        return {"feature": (embedding_dim,), "seen": ()}

    def blend_weights(self, memory: Mapping[str, Tensor], batch: BatchInfo) -> Tensor:
        """``a`` for each of this rank's classes, (c,): 0 where there is nothing fresh."""
        now = batch.step.to(memory["seen"].device) + 1
        fresh = (memory["seen"] > 0) & (now - memory["seen"] <= self.lifetime) & (now > self.start)
        return fresh.to(memory["feature"].dtype) * self.share

    def updated_class_buffers(self, x: Tensor, batch: BatchInfo) -> dict[str, Tensor]:
        """The last row of each class in the batch, (B, ...) each, from the unit rows ``x`` (B, D)."""
        same = batch.labels[:, None] == batch.labels[None, :]
        place = torch.arange(len(x), device=x.device)
        last = torch.where(same, place[None, :], -1).amax(1)
        return {"feature": x[last], "seen": (batch.step.to(x.device) + 1).expand(len(x))}
