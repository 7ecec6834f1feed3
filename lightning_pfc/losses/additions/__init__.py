"""Additions to a head's loss over the gathered embeddings: ``PartialFC(..., additions=[Triplet(weight=0.1)])``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_pfc.losses.additions.base import Addition
from lightning_pfc.losses.additions.center import Center
from lightning_pfc.losses.additions.supcon import SupCon
from lightning_pfc.losses.additions.triplet import Triplet

__all__ = ["Addition", "Center", "SupCon", "Triplet", "addition_from_config"]


def addition_from_config(config: str | Mapping[str, Any] | Addition) -> Addition:
    """An addition from itself, its name in any case, or a mapping with ``name`` and arguments.

    Raises:
        ValueError: for an unknown name, saying what exists.
        TypeError: for an argument that the addition does not have.
    """
    if isinstance(config, Addition):
        return config
    arguments = {"name": config} if isinstance(config, str) else dict(config)
    name = str(arguments.pop("name", ""))
    known = {cls.__name__.lower(): cls for cls in Addition.__subclasses__()}
    if name.lower() not in known:
        names = ", ".join(cls.__name__ for cls in known.values())
        raise ValueError(f"addition {name!r} does not exist; there are: {names}.")
    made: Addition = known[name.lower()](**arguments)
    return made
