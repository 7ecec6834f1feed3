"""Losses on the embeddings alone, added to a head's own loss over the batch that the head has gathered anyway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_pfc.names.renamed import adopt_renamed_members, renamed_member
from lightning_pfc.registry import Configurable

_EARLIER_NAMES = {"row_memory": "class_buffers", "remembered": "updated_class_buffers"}


@dataclass(frozen=True, kw_only=True)
class AuxiliaryLoss(Configurable):
    """Base of all auxiliary losses: a function of the embeddings and labels of all ranks, without a collective.

    Every rank computes the same value; the head sees to it that the gradient counts once. Where a head is replicated
    over groups of ranks, each group compares the embeddings of its own ranks.

    Args:
        weight: factor on the value, >= 0.
    """

    weight: float = 1.0

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        adopt_renamed_members(cls, _EARLIER_NAMES)

    def __getattr__(self, name: str) -> Any:
        return renamed_member(self, name, _EARLIER_NAMES)

    def __post_init__(self) -> None:
        self._check_number("weight", 0.0)

    def class_buffers(self, embedding_dim: int) -> dict[str, tuple[int, ...]]:
        """What is remembered of every class: names and shapes of a row, zero at first. Sharded as the centers are."""
        return {}

    def __call__(self, embeddings: Tensor, labels: Tensor, memory: Mapping[str, Tensor] | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            embeddings: (B, D), not normalised.
            labels: (B,) int64.
            memory: for each row what is remembered of its class, (B, ...) each.

        Returns:
            () mean over the rows that count.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__(embeddings, labels, memory).")

    def updated_class_buffers(
        self, embeddings: Tensor, labels: Tensor, memory: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """What to remember of each row's class after a training step, (B, ...) each; rows of one class must agree."""
        return {}


def same_identity(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(B, B) bool: pairs of two different rows of one identity, and pairs of two identities."""
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return same & ~itself, ~same


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of ``values`` (B,) over the ``valid`` rows; 0, with gradient 0, if there are none."""
    return torch.where(valid, values, 0.0).sum() / valid.sum().clamp(min=1)


def unit(embeddings: Tensor) -> Tensor:
    """Rows of length 1."""
    return F.normalize(embeddings, dim=1)
