"""Gradients of the centers from the slopes of a chunk, straight into their final storage."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_pfc.distributed.collectives import all_reduce
from lightning_pfc.heads.chunks import NORM_EPS, Chunks
from lightning_pfc.heads.memory import scratch


class RowGradients:
    """Collects the centers' gradients chunk by chunk, straight into their final storage, or one chunk at a time."""

    def __init__(self, chunks: Chunks, wanted: bool, keep_all: bool = True) -> None:
        self.chunks = chunks
        self.keep_all = keep_all
        x = chunks.x
        shape = (chunks.num_rows if keep_all else chunks.width, chunks.weight.shape[1])
        self.values = scratch(shape, x) if wanted else None
        self.bias = x.new_empty(chunks.num_rows) if chunks.bias is not None else None

    def add(
        self,
        low: int,
        high: int,
        rows: Tensor,
        inverse: Tensor | None,
        scores: Tensor,
        slope: Tensor,
        product: Tensor,
        live: Tensor | None = None,
    ) -> Tensor | None:
        """Gradient of a chunk's rows from ``slope`` = d loss / d cosine (B, n), which is left multiplied by 1/|w|.

        With ``u = w/|w|`` and ``g = sum_i slope_i x_i``: ``dw = (g - u (u.g)) / |w|`` and ``u.g = sum_i slope_i
        cos_i``. With ``live``, all arguments hold those columns of the chunk only, and the other gradients are zero.
        """
        if self.bias is not None:
            sums = slope.sum(0)
            self.bias[low:high] = sums if live is None else sums.new_zeros(high - low).index_copy_(0, live, sums)
        if inverse is not None:
            slope.mul_(inverse)
        if self.values is None:
            return None
        whole = self.values[low:high] if self.keep_all else self.values[: high - low]
        out = whole.view(-1, self.chunks.x.shape[1]) if live is None else torch.empty_like(rows)
        if inverse is None:
            torch.mm(slope.t(), self.chunks.x, out=out)
        else:
            along = torch.mul(slope, scores, out=product).sum(0).div_(self.chunks.plan.score_scale)
            # a row shorter than eps is scaled by a constant, so nothing is projected out of its gradient
            along = torch.where(inverse < 1.0 / NORM_EPS, along, 0.0)
            torch.mul(rows, (along * inverse).neg_()[:, None], out=out)
            out.addmm_(slope.t(), self.chunks.x)
        if live is not None:
            whole.zero_().view(-1, self.chunks.x.shape[1]).index_copy_(0, live, out)
        return self.chunks.chain_(whole, low, high)

    def weight_gradient(self, weight: Tensor, row_sparse: bool) -> Tensor:
        """The centers' gradient as autograd wants it: dense like ``weight``, or COO over the sampled rows."""
        assert self.values is not None
        return self._gradient(self.values, weight, row_sparse)

    def bias_gradient(self, bias: Tensor, row_sparse: bool) -> Tensor:
        """The same for the bias."""
        assert self.bias is not None
        return self._gradient(self.bias, bias, row_sparse)

    def _gradient(self, values: Tensor, parameter: Tensor, row_sparse: bool) -> Tensor:
        plan, index = self.chunks.plan, self.chunks.index
        values = all_reduce(values, plan.replica_group).to(parameter.device, parameter.dtype)
        if index is not None and parameter.device != index.device:
            index = self.chunks.kept_rows
        if row_sparse:
            ids = torch.arange(parameter.shape[0], device=parameter.device) if index is None else index
            # Ascending and distinct (but for padding), so nothing is left to coalesce.
            return torch.sparse_coo_tensor(
                ids[None], values, parameter.shape, is_coalesced=plan.sample.valid is None, check_invariants=False
            )
        return values if index is None else torch.zeros_like(parameter).index_add_(0, index, values)
