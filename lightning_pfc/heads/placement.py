"""Where the tensors with a row per class are kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch

Place = Literal["device", "host"]


class Placement:
    """Where centers and what belongs to them are made, and whether they go with the module.

    Args:
        device: of the rows; None: the default device.
        dtype: of the centers.
        row_folder: where they are kept in files, or None; see :class:`~lightning_pfc.heads.partial_fc.PartialFC`.
        rows_on: "device", or "host": they stay in the host's memory wherever the module is moved.

    Raises:
        ValueError: for another word than these.
    """

    def __init__(
        self,
        device: torch.device | str | None,
        dtype: torch.dtype,
        row_folder: str | os.PathLike[str] | None,
        rows_on: Place,
    ) -> None:
        if rows_on not in ("device", "host"):
            raise ValueError(f"rows_on={rows_on!r} must be 'device' or 'host' (the memory beside a GPU).")
        self.device = torch.device(device) if device is not None else torch.get_default_device()
        self.dtype = dtype
        self.row_folder = None if row_folder is None else Path(row_folder)
        self.rows_on = rows_on
