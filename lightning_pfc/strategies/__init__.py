"""The Lightning strategy that keeps the sharded head out of DDP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch.strategies import StrategyRegistry

from lightning_pfc.names.lazy import lazy_names
from lightning_pfc.strategies.pfc import PartialFCStrategy

if TYPE_CHECKING:
    from lightning_pfc.registration import register

PartialFCStrategy.register_strategies(StrategyRegistry)

__all__ = ["PartialFCStrategy", "register"]
__getattr__, __dir__ = lazy_names(__name__, {"register": "lightning_pfc.registration"})
