"""Folders of the Hugging Face hub."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_pfc.runs.errors import ExportError


def local_folder(name: str | os.PathLike[str], revision: str | None = None) -> Path:
    """A folder as it is, or that of a repository of the hub, fetched.

    Raises:
        ExportError: there is no such folder, and it is no name of the hub either.
    """
    path = Path(name)
    if path.is_dir():
        return path
    parts = str(name).split("/")
    if len(parts) != 2 or not all(part.replace("-", "").replace("_", "").replace(".", "").isalnum() for part in parts):
        raise ExportError("is neither a folder nor OWNER/NAME of the Hugging Face hub", name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), revision=revision))
    except Exception as error:  # its errors share no class
        lines = str(error).splitlines() or [type(error).__name__]
        raise ExportError(f"is no folder, and could not be fetched from the hub: {lines[0][:200]}", name) from error
