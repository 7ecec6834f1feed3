"""The Lightning strategy that keeps the sharded head out of DDP."""

from __future__ import annotations

from lightning_pfc.strategies.pfc import PartialFCStrategy, register

__all__ = ["PartialFCStrategy", "register"]
