"""The gradient of a chunk of classes where products are in a lower precision than float32."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_pfc.heads.softmax.class_chunks import Chunk, ClassChunks
from lightning_pfc.heads.softmax.precision import ARITHMETIC
from lightning_pfc.heads.softmax.unit_rows import center_gradient_
from lightning_pfc.matmul.in_precision import matmul


class RoundedCosGrad:
    """As :class:`~lightning_pfc.heads.softmax.cosine_gradient.CosineGradient`; slopes and unit rows are rounded.

    Args:
        values: (B, n) d loss / d cosine, 0 at the targets where these are apart.
        chunk: whose ``centers`` (n, D) belong to the columns.
        chunks: all of them, for the precision.
        target_grad: (B, P) of the targets' cosines, whose part is added in float32; None: it is in ``values``.
    """

    def __init__(self, values: Tensor, chunk: Chunk, chunks: ClassChunks, target_grad: Tensor | None) -> None:
        self._values, self._chunk = values, chunk
        self._precision = ARITHMETIC[chunks.spec.precision].gradients
        self._target_grad = None
        if target_grad is not None:
            self._target_grad = torch.where(chunk.targets.here, target_grad, 0.0)

    def write_bias_grad(self, out: Tensor) -> None:
        """The biases' gradient into ``out`` (n,)."""
        torch.sum(self._values, 0, out=out)
        if self._target_grad is not None:
            out.index_add_(0, self._chunk.targets.columns.flatten(), self._target_grad.flatten())

    def write_center_grad(self, out: Tensor, x: Tensor) -> None:
        """The centers' gradient into ``out`` (n, D), from the batch ``x`` (B, D)."""
        matmul(self._values.t(), x, self._precision, out=out)
        if self._target_grad is not None:
            parts = (self._target_grad[:, :, None] * x[:, None]).flatten(0, 1)
            out.index_add_(0, self._chunk.targets.columns.flatten(), parts)
        if self._chunk.inverse_norms is not None:
            center_gradient_(out, self._chunk.centers, self._chunk.inverse_norms)

    def add_to_embeddings_(self, x_grad: Tensor) -> None:
        """Add the embeddings' gradient to ``x_grad`` (B, D)."""
        rows, inverse = self._chunk.centers, self._chunk.inverse_norms
        units = rows if inverse is None else rows * inverse[:, None]
        x_grad += matmul(self._values, units, self._precision)
        if self._target_grad is not None:
            own = units.index_select(0, self._chunk.targets.columns.flatten())
            x_grad += torch.bmm(self._target_grad[:, None], own.view(*self._target_grad.shape, -1))[:, 0]
