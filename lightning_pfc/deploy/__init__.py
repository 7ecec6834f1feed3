"""From trained to used: exports that are checked, and a recogniser that opens them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_pfc.deploy.errors import EngineError, ExportError, GateError, NoFaceError
from lightning_pfc.runs.thresholds import NotCalibratedError, Threshold, Thresholds

if TYPE_CHECKING:
    from lightning_pfc.deploy.answers import Comparison, Match
    from lightning_pfc.deploy.recogniser import Recogniser
    from lightning_pfc.runs.network import EmbeddingModel

__all__ = [
    "Comparison",
    "EmbeddingModel",
    "EngineError",
    "ExportError",
    "GateError",
    "Match",
    "NoFaceError",
    "NotCalibratedError",
    "Recogniser",
    "Threshold",
    "Thresholds",
]


def __getattr__(name: str) -> Any:
    if name in ("Comparison", "Match", "Recogniser"):
        from lightning_pfc.deploy import recogniser

        return getattr(recogniser, name)
    if name == "EmbeddingModel":
        from lightning_pfc.runs.network import EmbeddingModel

        return EmbeddingModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
