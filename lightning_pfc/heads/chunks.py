"""Scores of the sampled classes, a chunk at a time, in buffers that all chunks share.

Shapes: B rows of the gathered batch, n classes of a chunk, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_pfc.distributed.collectives import all_reduce
from lightning_pfc.heads.memory import scratch
from lightning_pfc.heads.plan import Plan
from lightning_pfc.heads.table import is_elsewhere, staged, take_rows

NORM_EPS = 1e-12  # as torch.nn.functional.normalize


class Chunks:
    """Computes the scores of a chunk of classes, in buffers that all chunks share."""

    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, kept_rows: Tensor | None = None
    ) -> None:
        self.x, self.weight, self.bias, self.plan = x, weight, bias, plan
        self.index = plan.sample.index
        self.elsewhere = is_elsewhere(weight, x.device)
        # the sampled rows where the centers are kept; the forward pass hands them on, since asking the GPU for them
        # makes the host wait
        self.kept_rows = self.index if kept_rows is None else kept_rows
        if self.elsewhere and self.kept_rows is not None:
            self.kept_rows = self.kept_rows.to(weight.device)
        self.num_rows = weight.shape[0] if self.index is None else self.index.shape[0]
        self.ranges = list(plan.chunks(x.shape[0], self.num_rows))
        self.width = max((high - low for low, high in self.ranges), default=0)
        self.centers = plan.loss.num_centers
        gathers = self.index is not None or weight.dtype != x.dtype or self.elsewhere
        shape = (self.width, weight.shape[1])
        self._rows = scratch(shape, x) if gathers else None
        self._stored = scratch(shape, x, weight.dtype) if weight.dtype != x.dtype and not self.elsewhere else None
        self._pad = plan.sample.offsets(x.dtype)

    def rows(self, low: int, high: int) -> Tensor:
        """Centers (n, D) of a chunk in the compute dtype, or what takes their place; (n, K D) with K a class."""
        rows, prototypes = self._centers(low, high), self.plan.prototypes
        return rows if prototypes is None else prototypes.mix(rows, self.ids(low, high))

    def ids(self, low: int, high: int) -> slice | Tensor:
        """Local rows of a chunk's classes."""
        return slice(low, high) if self.index is None else self.index[low:high]

    def kept_ids(self, low: int, high: int) -> slice | Tensor:
        """The same where the centers are kept."""
        return slice(low, high) if self.kept_rows is None else self.kept_rows[low:high]

    def chain_(self, grad: Tensor, low: int, high: int) -> Tensor:
        """The gradient (n, D) of what :meth:`rows` gave, turned into that of the centers, in place."""
        prototypes = self.plan.prototypes
        return grad if prototypes is None else prototypes.chain_(grad, self._centers(low, high), self.ids(low, high))

    def _centers(self, low: int, high: int) -> Tensor:
        if self._rows is None:
            return self.weight[low:high]
        out = self._rows[: high - low]
        if self.elsewhere:
            return out.copy_(staged(self.weight, self.kept_ids(low, high)), non_blocking=True)
        if self.index is None:
            return out.copy_(self.weight[low:high])
        if self._stored is None:
            return torch.index_select(self.weight, 0, self.index[low:high], out=out)
        return out.copy_(torch.index_select(self.weight, 0, self.index[low:high], out=self._stored[: high - low]))

    def inverse_norms(self, rows: Tensor) -> Tensor:
        """1 / max(|w|, eps) of a chunk, (n,); of every center, (n K,), with K centers a class."""
        if self.centers > 1:
            rows = rows.view(-1, self.x.shape[1])
        norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
        return norms.clamp_(min=NORM_EPS).reciprocal_()

    def scores(
        self, low: int, high: int, rows: Tensor, inverse: Tensor | None, out: Tensor, scale: float = 1.0
    ) -> Tensor:
        """``scale`` times the cosines (or the dot products plus bias) of a chunk, into ``out`` (B, n)."""
        if self.centers > 1:
            every = self._every_center(rows, inverse, scale).view(out.shape[0], -1, self.centers)
            return torch.amax(every, 2, out=out)
        torch.mm(self.x, rows.t(), out=out)
        if inverse is not None:
            return out.mul_(inverse * scale)
        if self.bias is not None:
            ids = slice(low, high) if self.index is None else self.index[low:high]
            out.add_(self.bias[ids].to(out.dtype))
        return out if scale == 1.0 else out.mul_(scale)

    def _every_center(self, rows: Tensor, inverse: Tensor | None, scale: float) -> Tensor:
        """Scores (B, n K) of all K centers of a chunk's classes."""
        every = self.x @ rows.view(-1, self.x.shape[1]).t()
        return every.mul_(scale if inverse is None else inverse * scale)

    def nearest_only(self, rows: Tensor, inverse: Tensor | None, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Centers (n K, D), scores and slopes (B, n K) of a chunk: a class's slope goes to its nearest center."""
        every = self._every_center(rows, inverse, self.plan.score_scale)
        nearest = every.view(every.shape[0], -1, self.centers).argmax(2, keepdim=True)
        spread = slope.new_zeros((*slope.shape, self.centers)).scatter_(2, nearest, slope[:, :, None]).flatten(1)
        return rows.view(-1, self.x.shape[1]), every, spread

    def targets(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        """(B, 1) columns within the chunk, and whether the row's target is there."""
        columns = self.plan.sample.columns
        return (columns - low).clamp(0, high - low - 1)[:, None], ((columns >= low) & (columns < high))[:, None]

    def padding(self, low: int, high: int) -> Tensor | None:
        """What the sample adds to the logits of a chunk's negatives, (n,); -inf for padding, None for nothing."""
        return None if self._pad is None else self._pad[low:high]

    def mask_padding_(self, logits: Tensor, low: int, high: int) -> Tensor:
        """Add what the sample wants the negatives to weigh; the logits of padding become -inf. In place."""
        pad = self.padding(low, high)
        return logits if pad is None else logits.add_(pad)


def chunk_cosines(x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (low, high, cosines (B, n)) for every chunk of classes; the buffer is used again."""
    chunks = Chunks(x, weight, bias, plan)
    buffer = scratch((x.shape[0] * chunks.width,), x)
    for low, high in chunks.ranges:
        rows = chunks.rows(low, high)
        inverse = chunks.inverse_norms(rows) if plan.loss.normalize else None
        out = buffer[: (high - low) * x.shape[0]].view(x.shape[0], high - low)
        yield low, high, chunks.scores(low, high, rows, inverse, out)


def target_cosines(x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
    """The targets' cosines (B,) alone, without gradient, for losses that need them first. One all-reduce of (B,)."""
    with torch.no_grad():
        columns = plan.sample.columns
        if plan.sample.index is not None and plan.sample.index.shape[0] == 0:  # nothing of this step lives here
            return all_reduce(x.new_zeros(x.shape[0]), plan.shard_group)
        local = columns.clamp(min=0)
        ids = local if plan.sample.index is None else plan.sample.index[local]
        rows = take_rows(weight, ids, x.device).to(x.dtype).view(x.shape[0], plan.loss.num_centers, -1)
        value = torch.bmm(rows, x[:, :, None]).squeeze(2)
        if plan.loss.normalize:
            value /= rows.norm(dim=2).clamp(min=NORM_EPS)
        value = value.amax(1)
        if bias is not None:
            value += bias.index_select(0, ids).to(x.dtype)
        return all_reduce(torch.where(columns >= 0, value, 0.0), plan.shard_group)
