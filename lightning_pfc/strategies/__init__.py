"""The Lightning strategy that keeps the sharded head out of DDP."""

from __future__ import annotations

from lightning.pytorch.strategies import StrategyRegistry

from lightning_pfc.registration import register
from lightning_pfc.strategies.pfc import PartialFCStrategy

PartialFCStrategy.register_strategies(StrategyRegistry)

__all__ = ["PartialFCStrategy", "register"]
