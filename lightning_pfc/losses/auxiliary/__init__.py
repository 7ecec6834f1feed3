"""Losses on the gathered embeddings beside a head's own: ``PartialFC(..., auxiliary_losses=[Triplet(weight=0.1)])``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_pfc.losses.auxiliary.base import AuxiliaryLoss
from lightning_pfc.losses.auxiliary.center import Center
from lightning_pfc.losses.auxiliary.supcon import SupCon
from lightning_pfc.losses.auxiliary.triplet import Triplet
from lightning_pfc.registry import from_config

__all__ = ["AuxiliaryLoss", "Center", "SupCon", "Triplet", "auxiliary_loss_from_config"]


def auxiliary_loss_from_config(config: str | Mapping[str, Any] | AuxiliaryLoss) -> AuxiliaryLoss:
    """An auxiliary loss from itself, its name in any case, or a mapping with ``name`` and arguments.

    Raises:
        ValueError: for an unknown name, saying what exists.
        TypeError: for an argument that it does not have.
    """
    return from_config(AuxiliaryLoss, config)
