"""Checkpoints in global class coordinates: written by any number of ranks, read by any other.

A checkpoint of several ranks is a folder:

* ``manifest.json``: every tensor with its shape over all ranks and where its rows lie; a checksum of every block of
  every file. Written last.
* ``rank-00000.safetensors`` and so on: the tensors that a rank has written, in the safetensors format.
* ``rank-00000.pt`` and so on: everything else of a rank, such as counters and random state; read with ``weights_only``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_pfc.checkpoint.errors import CheckpointError
from lightning_pfc.names.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_pfc.checkpoint.manifest import Manifest, is_checkpoint_folder
    from lightning_pfc.checkpoint.save_load import load_folder, save_folder, verify_folder

__all__ = ["CheckpointError", "Manifest", "is_checkpoint_folder", "load_folder", "save_folder", "verify_folder"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Manifest": "lightning_pfc.checkpoint.manifest",
        "is_checkpoint_folder": "lightning_pfc.checkpoint.manifest",
        "load_folder": "lightning_pfc.checkpoint.save_load",
        "save_folder": "lightning_pfc.checkpoint.save_load",
        "verify_folder": "lightning_pfc.checkpoint.save_load",
    },
)
