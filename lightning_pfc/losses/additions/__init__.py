"""Additions to a head's loss over the gathered embeddings: ``PartialFC(..., additions=[Triplet(weight=0.1)])``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_pfc.losses.additions.base import Addition
from lightning_pfc.losses.additions.center import Center
from lightning_pfc.losses.additions.supcon import SupCon
from lightning_pfc.losses.additions.triplet import Triplet
from lightning_pfc.named import from_config

__all__ = ["Addition", "Center", "SupCon", "Triplet", "addition_from_config"]


def addition_from_config(config: str | Mapping[str, Any] | Addition) -> Addition:
    """An addition from itself, its name in any case, or a mapping with ``name`` and arguments.

    Raises:
        ValueError: for an unknown name, saying what exists.
        TypeError: for an argument that the addition does not have.
    """
    return from_config(Addition, config)
