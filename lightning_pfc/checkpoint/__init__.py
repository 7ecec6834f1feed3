"""Checkpoints in global class coordinates: written by any number of ranks, read by any other.

A checkpoint of several ranks is a folder:

* ``manifest.json``: every tensor with its shape over all ranks and where its rows lie; a checksum of every block of
  every file. Written last.
* ``rank-00000.safetensors`` and so on: the tensors that a rank has written, in the safetensors format.
* ``rank-00000.pt`` and so on: everything else of a rank, such as counters and random state; read with ``weights_only``.
"""

from __future__ import annotations

from lightning_pfc.checkpoint.manifest import CheckpointError, Manifest, is_checkpoint_folder
from lightning_pfc.checkpoint.save_load import load_folder, save_folder, verify_folder

__all__ = ["CheckpointError", "Manifest", "is_checkpoint_folder", "load_folder", "save_folder", "verify_folder"]
