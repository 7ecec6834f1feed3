"""Errors of exports: each names the file and the way out."""

from __future__ import annotations

from lightning_pfc.faces.errors import NoFaceError
from lightning_pfc.runs.errors import ExportError

__all__ = ["EngineError", "ExportError", "GateError", "NoFaceError"]


class GateError(ExportError):
    """A reduced model loses too much, or is not faster: it is not kept. The message has the figures."""


class EngineError(ImportError):
    """An engine is not installed, or cannot run this model here."""
