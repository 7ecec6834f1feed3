"""What is wrong with the folder of a run, or with an export."""

from __future__ import annotations

import os


class ExportError(ValueError):
    """A run or an export is missing, incomplete, changed, or of another version; or an export could not be made.

    Attributes:
        path: the file or folder.
    """

    def __init__(self, message: str, path: str | os.PathLike[str] | None = None) -> None:
        super().__init__(message if path is None else f"{os.fspath(path)}: {message}")
        self.path = None if path is None else os.fspath(path)
