"""Partial FC for PyTorch Lightning: margin-softmax heads whose class centers are split over all ranks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_pfc.after_import import after_import

if TYPE_CHECKING:
    from lightning_pfc.commands.train import train
    from lightning_pfc.heads import PartialFC
    from lightning_pfc.module import PartialFCModule
    from lightning_pfc.strategies import PartialFCStrategy

__version__ = "0.1.0"
__all__ = ["PartialFC", "PartialFCModule", "PartialFCStrategy", "train"]

# torch, Lightning, timm and Hydra take seconds to import, which only those who need them should pay
_HOMES = {
    "PartialFC": "lightning_pfc.heads",
    "PartialFCModule": "lightning_pfc.module",
    "PartialFCStrategy": "lightning_pfc.strategies",
    "train": "lightning_pfc.commands.train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register() -> None:
    """Make ``Trainer(strategy="pfc")`` known."""
    from lightning_pfc.strategies import register

    register()


after_import("lightning", _register)
