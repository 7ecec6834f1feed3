"""Of a checkpoint, what is needed to embed pictures: backbone and neck, never the head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_pfc.checkpoint.manifest import is_checkpoint_folder
from lightning_pfc.checkpoint.save_load import load_folder
from lightning_pfc.checkpoint.single import load_file
from lightning_pfc.distributed.comm import Comm
from lightning_pfc.models.compiled import plain_names


class _Network:
    """Of a checkpoint folder, the weights of backbone and neck alone; memory is made as they are read."""

    def __call__(self, key: str, stored: Any) -> None:
        """Have memory made for whatever is read."""

    def wants(self, key: str) -> bool:
        """Whether a tensor is read."""
        return key.startswith(("state_dict/backbone.", "state_dict/neck."))


def network_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, a file or a folder, as far as it is needed to embed pictures: of a folder the head stays unread.

    Raises:
        FileNotFoundError: it is not there, or is a folder that was never finished.
        CheckpointError: a file of it is missing or damaged.
    """
    if is_checkpoint_folder(path):
        content: Any = load_folder(path, Comm.single(), _Network())[0]
    elif path.exists() and not path.is_dir():
        content = load_file(path)
    else:
        what = "is a folder without a manifest.json" if path.is_dir() else "is not there"
        raise FileNotFoundError(f"no such checkpoint: {path} {what}")
    found: dict[str, Any] = dict(content)
    if isinstance(found.get("state_dict"), dict):
        found["state_dict"] = plain_names(found["state_dict"])
    return found
