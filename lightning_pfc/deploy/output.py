"""What may be done to embeddings inside the exported network: mirror images added, length one, another precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


class Output(nn.Module):
    """A network with what the export adds to it.

    Args:
        network: (b, C, H, W) -> (b, D).
        flip: ``"sum"`` adds the embedding of the mirror image.
        unit: give embeddings length one.
        dtype: the network computes in; images come and embeddings go in float32.
    """

    def __init__(
        self, network: nn.Module, *, flip: str = "none", unit: bool = False, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.network = network if dtype is torch.float32 else network.to(dtype)
        self.flip = flip
        self.unit = unit
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        """(b, C, H, W) float32 -> (b, D) float32."""
        images = images.to(self.dtype)
        embeddings: Tensor = self.network(images).float()
        if self.flip == "sum":
            embeddings = embeddings + self.network(images.flip(-1)).float()
        return normalize(embeddings) if self.unit else embeddings
