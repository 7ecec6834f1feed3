"""d loss / d cosine of a chunk, dense or sparse, and what it means for the centers and for the embeddings."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_pfc.heads.softmax.class_chunks import NORM_EPS, Chunk, ClassChunks
from lightning_pfc.heads.softmax.gradient_filter import GradientFilter
from lightning_pfc.heads.softmax.learned_logits import LearnedLogits
from lightning_pfc.heads.softmax.rounded_gradient import RoundedCosGrad
from lightning_pfc.heads.softmax.sparse_entries import (
    SparseEntries,
    by_class,
    sums_by_class,
    times_batch,
    times_centers,
)


class SumGradients(NamedTuple):
    """What comes back to the sums of the forward pass.

    Attributes:
        logsumexp: (B,) the forward pass's result itself.
        logsumexp_grad: (B,).
        sum_grad: (B,) of the sum of the negatives' logits.
        target_grad: (B, P) of the targets' cosines.
    """

    logsumexp: Tensor
    logsumexp_grad: Tensor
    sum_grad: Tensor
    target_grad: Tensor


class CosineGradient(Protocol):
    """The gradient of a chunk: with ``u = w/|w|`` and ``g = sum_i s_i x_i``, ``dw = (g - u (u.g)) / |w|``."""

    def write_bias_grad(self, out: Tensor) -> None:
        """The biases' gradient into ``out`` (n,)."""

    def write_center_grad(self, out: Tensor, x: Tensor) -> None:
        """The centers' gradient into ``out`` (n, D), from the batch ``x`` (B, D)."""

    def add_to_embeddings_(self, x_grad: Tensor) -> None:
        """Add the embeddings' gradient to ``x_grad`` (B, D)."""


class DenseCosGrad:
    """A whole matrix of it.

    Args:
        values: (B, n) d loss / d cosine; becomes d loss / d (x . w).
        chunk: whose ``centers`` (n, D) and ``scores`` (B, n) belong to the columns.
        score_scale: what the scores are multiplied by.
        room: (B, n), to be overwritten.
    """

    def __init__(self, values: Tensor, chunk: Chunk, score_scale: float, room: Tensor) -> None:
        inverse = chunk.inverse_norms
        self._values = values if inverse is None else values.mul_(inverse)
        self._chunk, self._score_scale, self._room = chunk, score_scale, room

    def write_bias_grad(self, out: Tensor) -> None:
        """As :class:`CosineGradient`; only logits without normalisation have a bias."""
        torch.sum(self._values, 0, out=out)

    def write_center_grad(self, out: Tensor, x: Tensor) -> None:
        """As :class:`CosineGradient`; ``u.g = sum_i s_i cos_i`` comes from the scores."""
        inverse = self._chunk.inverse_norms
        if inverse is None:
            torch.mm(self._values.t(), x, out=out)
            return
        along = torch.mul(self._values, self._chunk.scores, out=self._room).sum(0).div_(self._score_scale)
        torch.mul(self._chunk.centers, _projected(along, inverse)[:, None], out=out)
        out.addmm_(self._values.t(), x)

    def add_to_embeddings_(self, x_grad: Tensor) -> None:
        """As :class:`CosineGradient`."""
        x_grad.addmm_(self._values, self._chunk.centers)


class SparseCosGrad:
    """The entries that matter.

    Args:
        entries: of d loss / d cosine.
        chunk: whose ``centers`` (n, D) and ``scores`` (B, n) belong to the columns.
        score_scale: what the scores are multiplied by.
    """

    def __init__(self, entries: SparseEntries, chunk: Chunk, score_scale: float) -> None:
        inverse = chunk.inverse_norms
        if inverse is not None:
            entries = entries._replace(values=entries.values * inverse[entries.columns])
        self._entries, self._chunk, self._score_scale = entries, chunk, score_scale
        self._ordered, self._starts = by_class(entries)
        self._classes = self._ordered.columns[self._starts]

    def write_bias_grad(self, out: Tensor) -> None:
        """As :class:`CosineGradient`."""
        out.zero_()
        out[self._classes] = sums_by_class(self._ordered.values, self._starts)

    def write_center_grad(self, out: Tensor, x: Tensor) -> None:
        """As :class:`CosineGradient`."""
        ordered, inverse = self._ordered, self._chunk.inverse_norms
        found = times_batch(ordered, self._starts, x)
        if inverse is not None:
            cosines = self._chunk.scores[ordered.rows, ordered.columns] / self._score_scale
            along = sums_by_class(ordered.values * cosines, self._starts)
            found.addcmul_(self._chunk.centers[self._classes], _projected(along, inverse[self._classes])[:, None])
        out.zero_().index_copy_(0, self._classes, found)

    def add_to_embeddings_(self, x_grad: Tensor) -> None:
        """As :class:`CosineGradient`."""
        x_grad += times_centers(self._entries, self._chunk.centers, x_grad.shape[0])


class CosineGradients:
    """Computes the gradient of a chunk from what comes back to the sums.

    Args:
        chunks: of the backward pass.
        incoming: what comes back.
        learned: how logits come from cosines; None where they are ``scale * cosine``.
    """

    def __init__(self, chunks: ClassChunks, incoming: SumGradients, learned: LearnedLogits | None) -> None:
        self._chunks, self._incoming, self._learned = chunks, incoming, learned
        spec, rows = chunks.spec, chunks.rows
        self._filter = None
        if spec.gradient_filter > 0:
            self._filter = GradientFilter(
                spec, rows.num_sampled, incoming.logsumexp, incoming.logsumexp_grad, incoming.target_grad
            )
        self._buffers = (chunks.buffer(), chunks.buffer())

    def of(self, chunk: Chunk) -> CosineGradient:
        """The gradient of a chunk; valid until the next one is asked for."""
        scale = self._chunks.spec.score_scale
        entries = self._filter.predict(chunk) if self._filter is not None else None
        if entries is not None:
            return SparseCosGrad(entries, chunk, scale)
        values, room = (self._chunks.view(buffer, chunk.low, chunk.high) for buffer in self._buffers)
        values = self._of_negatives(chunk, values)
        rounded = self._chunks.spec.precision != "float32"
        if rounded and self._chunks.centers_per_class == 1:
            return RoundedCosGrad(chunk.targets.fill_(values, 0.0), chunk, self._chunks, self._incoming.target_grad)
        values = chunk.targets.put_(values, self._incoming.target_grad)
        if self._chunks.centers_per_class > 1:
            centers, scores, values = self._chunks.nearest_center_only(chunk, values)
            chunk = self._chunks.chunk(chunk.low, chunk.high, centers, chunk.inverse_norms, scores)
            room = torch.empty_like(values)
            if rounded:
                return RoundedCosGrad(values, chunk, self._chunks, None)
        entries = self._filter.select(values) if self._filter is not None else None
        return DenseCosGrad(values, chunk, scale, room) if entries is None else SparseCosGrad(entries, chunk, scale)

    def _of_negatives(self, chunk: Chunk, out: Tensor) -> Tensor:
        """D loss / d cosine (B, n) of a chunk's negatives; of the targets, anything."""
        spec, incoming = self._chunks.spec, self._incoming
        logits = chunk.scores if self._learned is None else self._learned.forward(chunk.scores)
        chain = spec.scale if self._learned is None else 1.0
        grad = chunk.add_offsets_(torch.sub(logits, incoming.logsumexp[:, None], out=out)).exp_()
        grad.mul_((incoming.logsumexp_grad * chain)[:, None])
        if spec.sums_logits:
            grad.add_(self._of_logit_sum(chunk, logits, chain))
        return grad if self._learned is None else grad.copy_(self._learned.vjp(grad, chunk.targets))

    def _of_logit_sum(self, chunk: Chunk, logits: Tensor, chain: float) -> Tensor:
        """The part of the sum of the negatives' logits (or of their softplus), (B, 1) or (B, n)."""
        spread = (self._incoming.sum_grad * chain)[:, None]
        if self._chunks.spec.softplus:
            spread = spread * torch.sigmoid(logits)
        valid = self._chunks.rows.valid
        return spread if valid is None else spread * valid[chunk.low : chunk.high]


def _projected(along: Tensor, inverse: Tensor) -> Tensor:
    """Factor (n,) of the centers in their gradient; ``along`` = u.g / |w|."""
    # a row shorter than eps is scaled by a constant, so nothing is projected out of its gradient
    return torch.where(inverse < 1.0 / NORM_EPS, along, 0.0).mul_(inverse).neg_()
