"""The 3 x 3 convolution of our networks; on maps of at most 2 x 2 places it is computed as the matrix product it is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROWS = 32  # images from which on the product pays: its matrix is laid out anew each time


class Conv3x3(nn.Conv2d):
    """``nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)``: (B, inside, H, W) -> (B, outside, H', W').

    Small pictures end in maps of 2 x 2 or 1 x 1 places, of which every place of the output sees every place of the
    input. A processor's convolution spends most of its time on the padding there. Elsewhere, on a GPU and in exported
    graphs it is the library's convolution.
    """

    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__(inside, outside, 3, stride, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """As ``nn.Conv2d``, to rounding."""
        places = x.shape[-2:]
        if self.stride != (1, 1) or max(places) > 2 or len(x) < _ROWS or not x.is_cpu or _is_recorded():
            return super().forward(x)
        height, width = places
        kernel = self.weight.permute(0, 2, 3, 1)  # channels last, as the map mostly is
        seen = [kernel[:, 1 - i : 1 - i + height, 1 - j : 1 - j + width] for i in range(height) for j in range(width)]
        matrix = torch.stack(seen).flatten(0, 1).flatten(1)  # (H W outside, H W inside)
        y = F.linear(x.permute(0, 2, 3, 1).flatten(1), matrix)
        return y.view(len(x), height, width, self.out_channels).permute(0, 3, 1, 2)


def _is_recorded() -> bool:
    return torch.compiler.is_compiling() or bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]
