"""Scores of very many pairs, block by block: fast in float32 where that decides, in float64 where it does not.

A float32 product of two unit vectors of width D is off by at most ``(D + 4) 2^-24``, whatever the order of summation
(rounding the vectors to float32 included). A pair whose float32 score is further than that from a threshold lies on the
side that it seems to; the few others are computed again, in float64, alone. So every count is the one that float64
scores give, and it depends neither on the size of the blocks nor on the number of ranks; on another kind of processor
the last bit of a float64 score may be another one.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EXACT_CHUNK = 1 << 15  # pairs


class UnitRows:
    """Embeddings as unit rows: float32 for blocks, and exact scores of chosen pairs.

    Args:
        embeddings: Shape (N, D), any float dtype; a row of zeros scores 0 with everything.

    Raises:
        ValueError: On another shape, or a row that is not finite (names the first).
    """

    def __init__(self, embeddings: Tensor) -> None:
        if embeddings.ndim != 2 or not embeddings.is_floating_point():
            raise ValueError(f"embeddings must be (N, D) floats, got {tuple(embeddings.shape)} {embeddings.dtype}")
        self.raw = embeddings.detach()
        norms = torch.cat([part.double().square().sum(1).sqrt() for part in torch.split(self.raw, _EXACT_CHUNK)])
        if not bool(norms.isfinite().all()):
            row = int((~norms.isfinite()).nonzero()[0])
            raise ValueError(f"embeddings holds NaN or infinity in row {row}; look for images that broke the model")
        self.norms = torch.where(norms == 0, 1.0, norms)
        self.unit = torch.empty_like(self.raw, dtype=torch.float32)
        for start in range(0, len(self.raw), _EXACT_CHUNK):
            part = slice(start, start + _EXACT_CHUNK)
            self.unit[part] = (self.raw[part].double() / self.norms[part, None]).float()
        self.tolerance = (embeddings.shape[1] + 4) * 2.0**-24

    def __len__(self) -> int:
        return len(self.raw)

    def exact(self, first: Tensor, second: Tensor, other: UnitRows | None = None) -> Tensor:
        """Cosines of pairs of rows in float64, (p,); ``second`` counts the rows of ``other`` if that is given.

        Each is a function of its two rows alone.
        """
        other = other or self
        out = torch.empty(len(first), dtype=torch.float64, device=self.raw.device)
        for start in range(0, len(first), _EXACT_CHUNK):
            i, j = first[start : start + _EXACT_CHUNK], second[start : start + _EXACT_CHUNK]
            product = (self.raw[i].double() * other.raw[j].double()).sum(1)
            out[start : start + _EXACT_CHUNK] = product / (self.norms[i] * other.norms[j])
        return out


def entries_above(block: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Flat positions and values of the entries of a contiguous block that are above ``floor``.

    Blocks are nearly empty above the thresholds that matter, so segments of 64 are passed over by their maximum first.

    Args:
        block: Scores, (n, m) float32, contiguous.
        floor: What to exceed.

    Returns:
        Positions in the flattened block, int64, increasing, and the values.
    """
    flat = block.view(-1)
    width = 64
    if len(flat) % width == 0 and len(flat) > width:
        segments = flat.view(-1, width)
        hot = (segments.amax(1) > floor).nonzero().squeeze(1)
        if len(hot) * 2 < len(segments):
            values = segments[hot]
            row, column = (values > floor).nonzero(as_tuple=True)
            return hot[row] * width + column, values[row, column]
    position = (flat > floor).nonzero().squeeze(1)
    return position, flat[position]
