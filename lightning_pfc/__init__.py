"""Partial FC for PyTorch Lightning: margin-softmax heads whose class centers are split over all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_pfc.names.after_import import after_import
from lightning_pfc.names.lazy import lazy_names
from lightning_pfc.names.moved import MOVED
from lightning_pfc.processes.launching import follow_rank_0
from lightning_pfc.processes.signals import catch_from_the_start
from lightning_pfc.registration import register

if TYPE_CHECKING:
    from lightning_pfc.commands.train import train
    from lightning_pfc.heads import PartialFC
    from lightning_pfc.module import PartialFCModule
    from lightning_pfc.strategies import PartialFCStrategy

catch_from_the_start()  # both before what takes seconds to import
follow_rank_0()

__version__ = "0.1.0"
__all__ = ["PartialFC", "PartialFCModule", "PartialFCStrategy", "train"]

# torch, Lightning, timm and Hydra take seconds to import, which only those who need them should pay
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "PartialFC": "lightning_pfc.heads",
        "PartialFCModule": "lightning_pfc.module",
        "PartialFCStrategy": "lightning_pfc.strategies",
        "train": "lightning_pfc.commands.train",
    },
)


after_import("lightning", register)  # Trainer(strategy="pfc")
MOVED.install()
