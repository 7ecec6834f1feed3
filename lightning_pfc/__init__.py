"""Partial FC for PyTorch Lightning: margin-softmax heads whose class centers are split over all ranks."""

from __future__ import annotations

from lightning_pfc.heads import PartialFC
from lightning_pfc.strategies import PartialFCStrategy, register

__version__ = "0.1.0"
__all__ = ["PartialFC", "PartialFCStrategy"]

register()  # Trainer(strategy="pfc")
