"""An export's weights in PyTorch: the twin that the other engines are compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from lightning_pfc.deploy.description import ModelDescription
from lightning_pfc.deploy.engines import Floats
from lightning_pfc.deploy.folder import checked_file
from lightning_pfc.deploy.output import Output
from lightning_pfc.runs.network import CONFIG, WEIGHTS, EmbeddingModel


class TorchEngine:
    """A module as an engine, in evaluation mode and without gradients.

    Args:
        module: (b, C, H, W) float32 -> (b, D).
        device: where to compute.
    """

    name = "torch"

    def __init__(self, module: nn.Module, device: torch.device | str = "cpu") -> None:
        self.module = module.eval().to(device)
        self.device = torch.device(device)

    def __call__(self, images: Floats) -> Floats:
        """(b, C, H, W) float32 to (b, D) float32."""
        with torch.inference_mode():
            found = self.module(torch.from_numpy(np.ascontiguousarray(images)).to(self.device))
        rows: Floats = found.float().cpu().numpy()
        return rows

    @classmethod
    def load(cls, folder: Path, description: ModelDescription) -> TorchEngine:
        """From the weights of an export.

        Raises:
            ExportError: a file is missing or was changed.
        """
        for name in (CONFIG, WEIGHTS):
            checked_file(folder, name, description)
        network = EmbeddingModel.from_pretrained(folder)
        return cls(Output(network, flip=description.model.flip, unit=description.model.unit))
