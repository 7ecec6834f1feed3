"""Errors of exports: each names the file and the way out."""

from __future__ import annotations

import os


class ExportError(ValueError):
    """An export is missing, incomplete, changed, or of another version; or one could not be made.

    Attributes:
        path: the file or folder.
    """

    def __init__(self, message: str, path: str | os.PathLike[str] | None = None) -> None:
        super().__init__(message if path is None else f"{os.fspath(path)}: {message}")
        self.path = None if path is None else os.fspath(path)


class GateError(ExportError):
    """A reduced model loses too much, or is not faster: it is not kept. The message has the figures."""


class EngineError(ImportError):
    """An engine is not installed, or cannot run this model here."""


class NoFaceError(ValueError):
    """A photo shows no face, or several where one is wanted."""
