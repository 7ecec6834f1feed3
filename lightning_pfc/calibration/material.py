"""Scored pictures that a threshold is chosen on: all pairs of a set, or the pairs of a list."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_pfc.calibration.trials import Ints


@dataclass(frozen=True)
class Material:
    """Embeddings with identities, or scored pairs.

    Attributes:
        name: Of the set, as the user calls it.
        embeddings: (N, D) of all pictures, to be paired each with each; None for a list of pairs.
        labels: Identity of each picture, (N,) int64; None where pairs have no identities.
        scores: (P,) float64 cosines of listed pairs; None for all pairs.
        same: (P,) bool.
        sides: Identities of each pair's pictures, (P,) int64 each; None where they have no names.
    """

    name: str
    embeddings: Tensor | None = None
    labels: Tensor | None = None
    scores: Tensor | None = None
    same: Tensor | None = None
    sides: tuple[Tensor, Tensor] | None = None

    @property
    def unit(self) -> str:
        """What a bootstrap draws."""
        return "identities" if self.labels is not None or self.sides is not None else "pairs"

    def numbered(self) -> tuple[Ints, Ints]:
        """Identity of each picture, numbered from 0, (N,), and how many pictures each has."""
        assert self.labels is not None
        number = torch.unique(self.labels, return_inverse=True)[1].numpy()
        return number, np.bincount(number)
