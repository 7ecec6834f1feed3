"""Partial FC for PyTorch Lightning: margin-softmax heads whose class centers are split over all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_pfc.heads import PartialFC
from lightning_pfc.strategies import PartialFCStrategy, register

if TYPE_CHECKING:
    from lightning_pfc.commands.train import train
    from lightning_pfc.module import PartialFCModule

__version__ = "0.1.0"
__all__ = ["PartialFC", "PartialFCModule", "PartialFCStrategy", "train"]

register()  # Trainer(strategy="pfc")


def __getattr__(name: str) -> Any:
    # timm and Hydra take seconds to import, which a project that only wants the head should not pay
    if name == "PartialFCModule":
        from lightning_pfc.module import PartialFCModule

        return PartialFCModule
    if name == "train":
        from lightning_pfc.commands.train import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
