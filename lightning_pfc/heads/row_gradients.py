"""Gradients of the centers from the slopes of a chunk, straight into their final storage."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_pfc.distributed.collectives import all_reduce
from lightning_pfc.heads.chunks import NORM_EPS, Chunks
from lightning_pfc.heads.memory import scratch
from lightning_pfc.heads.sparse_slopes import Slopes, by_class, sums_by_class, times_batch


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
    ) -> Tensor | None:
        """Gradient of a chunk's rows from ``slope`` = d loss / d cosine (B, n), which is left multiplied by 1/|w|.

        With ``u = w/|w|`` and ``g = sum_i slope_i x_i``: ``dw = (g - u (u.g)) / |w|`` and ``u.g = sum_i slope_i
        cos_i``.
        """
        if self.bias is not None:
            self.bias[low:high] = slope.sum(0)
        if inverse is not None:
            slope.mul_(inverse)
        whole = self._room(low, high)
        if whole is None:
            return None
        out = whole.view(-1, self.chunks.x.shape[1])
        if inverse is None:
            torch.mm(slope.t(), self.chunks.x, out=out)
        else:
            along = torch.mul(slope, scores, out=product).sum(0).div_(self.chunks.plan.score_scale)
            torch.mul(rows, _projected(along, inverse)[:, None], out=out)
            out.addmm_(slope.t(), self.chunks.x)
        return self.chunks.chain_(whole, low, high)

    def add_few(
        self, low: int, high: int, rows: Tensor, inverse: Tensor | None, scores: Tensor, slopes: Slopes
    ) -> tuple[Tensor | None, Slopes]:
        """As :meth:`add`, from the slopes that matter; also these, multiplied by 1/|w|."""
        ordered, starts = by_class(slopes)
        classes = ordered.columns[starts]
        if self.bias is not None:
            self.bias[low:high] = 0.0
            self.bias[low:high][classes] = sums_by_class(ordered.values, starts)
        if inverse is not None:
            slopes = slopes._replace(values=slopes.values * inverse[slopes.columns])
            ordered = ordered._replace(values=ordered.values * inverse[ordered.columns])
        whole = self._room(low, high)
        if whole is None:
            return None, slopes
        found = times_batch(ordered, starts, self.chunks.x)
        if inverse is not None:
            cosines = scores[ordered.rows, ordered.columns] / self.chunks.plan.score_scale
            along = sums_by_class(ordered.values * cosines, starts)
            found.addcmul_(rows[classes], _projected(along, inverse[classes])[:, None])
        whole.zero_().view(-1, self.chunks.x.shape[1]).index_copy_(0, classes, found)
        return self.chunks.chain_(whole, low, high), slopes

    def _room(self, low: int, high: int) -> Tensor | None:
        if self.values is None:
            return None
        return self.values[low:high] if self.keep_all else self.values[: high - low]

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


def _projected(along: Tensor, inverse: Tensor) -> Tensor:
    """Factor (n,) of the centers in their gradient; ``along`` = u.g / |w|."""
    # a row shorter than eps is scaled by a constant, so nothing is projected out of its gradient
    return torch.where(inverse < 1.0 / NORM_EPS, along, 0.0).mul_(inverse).neg_()
