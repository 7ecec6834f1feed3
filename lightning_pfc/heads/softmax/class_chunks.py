"""The sampled classes a chunk at a time: their centers and scores, in buffers that all chunks share."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_pfc.buffers.host_rows import is_offloaded, stage_pinned
from lightning_pfc.buffers.scratch import scratch
from lightning_pfc.heads.softmax.chunking import chunk_width
from lightning_pfc.heads.softmax.spec import SampledRows, SoftmaxSpec
from lightning_pfc.heads.softmax.targets import ChunkTargets
from lightning_pfc.matmul.in_precision import matmul

NORM_EPS = 1e-12  # as torch.nn.functional.normalize
_CHUNK_ELEMENTS = 1 << 21  # logits of one chunk: 8 MiB of float32; fewer, larger products won over staying in cache
_LARGEST_CHUNK = 4096  # classes
_BUFFERS = 3  # of the size of a chunk's scores: those themselves, the gradient, and what it comes from


def default_chunk_size(x: Tensor, num_rows: int, budget: int) -> int:
    """Default number of classes of a chunk, of ``num_rows`` and for embeddings ``x`` (B, D)."""
    batch, dim = x.shape
    if x.device.type != "cpu":
        return chunk_width(batch, num_rows, dim, x.device, kept_bytes=_BUFFERS * x.element_size(), budget=budget)
    return max(256, min(_LARGEST_CHUNK, _CHUNK_ELEMENTS // max(batch, 1)))


@dataclass(eq=False)
class Chunk:
    """A chunk of n classes, ``[low, high)`` of the sampled ones; its tensors are valid until the next one is asked for.

    Attributes:
        centers: (n, D) in the compute dtype, or what takes their place; (n, k D) with k a class.
        inverse_norms: (n,) 1 / |center|, (n k,) with k a class; None without normalisation.
        scores: (B, n) ``score_scale`` times the cosines, or the dot products plus bias.
        targets: the positives among the classes.
        offsets: (n,) what is added to the negatives' logits, -inf for padding; None for nothing.
    """

    low: int
    high: int
    centers: Tensor
    inverse_norms: Tensor | None
    scores: Tensor
    targets: ChunkTargets
    offsets: Tensor | None

    def add_offsets_(self, logits: Tensor) -> Tensor:
        """Add what negatives are to weigh; the logits (B, n) of padding become -inf. In place."""
        return logits if self.offsets is None else logits.add_(self.offsets)


class ClassChunks:
    """Reads centers and computes scores, a chunk of classes at a time.

    Args:
        x: (B, D) in the compute dtype.
        weight: (c, D) this rank's centers, of any floating dtype, perhaps in the host's memory.
        bias: (c,) or None.
        targets: (B, P) int64, columns among the K sampled rows; -1 where another rank owns the class, or for none.
        rows: the sampled rows.
        spec: the rest.
        stored_index: ``rows.index`` where the centers are stored, from the forward pass: asking a GPU for it makes the
            host wait.
    """

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        rows: SampledRows,
        spec: SoftmaxSpec,
        stored_index: Tensor | None = None,
    ) -> None:
        self.x, self.weight, self.bias, self.targets, self.rows, self.spec = x, weight, bias, targets, rows, spec
        self.index = rows.index
        self.offloaded = is_offloaded(weight, x.device)
        self.stored_index = self.index if stored_index is None else stored_index
        if self.offloaded and self.stored_index is not None:
            staged = rows.staged
            self.stored_index = self.stored_index.to(weight.device) if staged is None else staged.index
        self.num_rows = weight.shape[0] if self.index is None else self.index.shape[0]
        size = spec.chunk_size or default_chunk_size(x, self.num_rows, spec.memory_budget)
        self.ranges = [(low, min(low + size, self.num_rows)) for low in range(0, self.num_rows, size)]
        self.width = max((high - low for low, high in self.ranges), default=0)
        gathers = self.index is not None or weight.dtype != x.dtype or self.offloaded
        self._gathers, self._shape = gathers, (self.width, weight.shape[1])

    @functools.cached_property
    def _ahead(self) -> Tensor | None:
        """The rows (K, ...) that were fetched when the batch came, as they were when this pass began to read.

        Chunks that an optimizer has stepped meanwhile are no reason to read the others again: a row is in one of them.
        """
        return None if self.rows.staged is None else self.rows.staged.take(self.weight)

    @functools.cached_property
    def _centers(self) -> Tensor:
        return scratch(self._shape, self.x)

    @functools.cached_property
    def _stored(self) -> Tensor:
        """Rows as they are stored, where a product wants another type; kernels that gather have no use for it."""
        return scratch(self._shape, self.x, self.weight.dtype)

    @property
    def centers_per_class(self) -> int:
        """Centers that lie side by side in a row."""
        return self.spec.centers_per_class

    def buffer(self) -> Tensor:
        """Room for the scores of any chunk; see :meth:`view`."""
        return scratch((self.x.shape[0] * self.width,), self.x)

    def view(self, buffer: Tensor, low: int, high: int) -> Tensor:
        """The (B, n) that a chunk takes of :meth:`buffer`."""
        batch = self.x.shape[0]
        return buffer[: (high - low) * batch].view(batch, high - low)

    def compute(self, low: int, high: int, out: Tensor, norms: Tensor | None, scale: float, known: bool) -> Chunk:
        """A chunk with its scores.

        Args:
            low: the first class.
            high: the one after the last.
            out: (B, n) for the scores.
            norms: (n,) for the inverse norms; None without normalisation.
            scale: factor on the scores.
            known: whether ``norms`` holds them already, and ``out`` the scores unless it is to be computed again.
        """
        centers = self.centers(low, high)
        if norms is not None and not known:
            self._inverse_norms(centers, norms)
        self.scores(low, high, centers, norms, out, scale)
        return self.chunk(low, high, centers, norms, out)

    def chunk(self, low: int, high: int, centers: Tensor, norms: Tensor | None, scores: Tensor) -> Chunk:
        """A chunk of what is known already."""
        targets = ChunkTargets.within(self.targets, low, high)
        return Chunk(low, high, centers, norms, scores, targets, self.offsets(low, high))

    def offsets(self, low: int, high: int) -> Tensor | None:
        """What is added to the negatives' logits of a chunk, (n,); None for nothing."""
        return None if self._offsets is None else self._offsets[low:high]

    @functools.cached_property
    def _offsets(self) -> Tensor | None:
        return self.rows.logit_offsets(self.x.dtype)

    def centers(self, low: int, high: int) -> Tensor:
        """Centers (n, D) of a chunk in the compute dtype, or what takes their place; (n, k D) with k a class."""
        found, blended = self._read(low, high), self.spec.blended
        return found if blended is None else blended.blend(found, self._ids(low, high))

    def chain_(self, grad: Tensor, low: int, high: int) -> Tensor:
        """The gradient (n, D) of what :meth:`centers` gave, turned into that of the centers, in place."""
        blended = self.spec.blended
        return grad if blended is None else blended.chain_(grad, self._read(low, high), self._ids(low, high))

    def stored_ids(self, low: int, high: int) -> slice | Tensor:
        """Local rows of a chunk's classes, where the centers are stored."""
        return slice(low, high) if self.stored_index is None else self.stored_index[low:high]

    def stored_rows(self, low: int, high: int) -> tuple[Tensor, Tensor | None]:
        """For a kernel that gathers: the centers (c, D) and the rows (n,) of a chunk, or its rows alone and None."""
        ids, weight = self.stored_ids(low, high), self.weight.detach()
        return (weight[ids], None) if isinstance(ids, slice) else (weight, ids)

    def _ids(self, low: int, high: int) -> slice | Tensor:
        return slice(low, high) if self.index is None else self.index[low:high]

    def _read(self, low: int, high: int) -> Tensor:
        if not self._gathers:
            return self.weight[low:high]
        if self.offloaded:
            if self._ahead is None:
                found = stage_pinned(self.weight, self.stored_ids(low, high))
            else:
                found = self._ahead[low:high]
                if (found.device, found.dtype) == (self.x.device, self.x.dtype):
                    return found
            return self._centers[: high - low].copy_(found, non_blocking=True)
        out = self._centers[: high - low]
        if self.index is None:
            return out.copy_(self.weight[low:high])
        if self.weight.dtype == self.x.dtype:
            return torch.index_select(self.weight, 0, self.index[low:high], out=out)
        return out.copy_(torch.index_select(self.weight, 0, self.index[low:high], out=self._stored[: high - low]))

    def _inverse_norms(self, centers: Tensor, out: Tensor) -> Tensor:
        """1 / max(|w|, eps) of a chunk, into (n,) or, of every center, (n k,)."""
        if self.centers_per_class > 1:
            centers = centers.view(-1, self.x.shape[1])
        torch.linalg.vector_norm(centers, dim=1, out=out)
        return out.clamp_(min=NORM_EPS).reciprocal_()

    def scores(
        self, low: int, high: int, centers: Tensor, inverse: Tensor | None, out: Tensor, scale: float = 1.0
    ) -> Tensor:
        """``scale`` times the cosines (or the dot products plus bias) of a chunk, into ``out`` (B, n)."""
        if self.centers_per_class > 1:
            every = self._every_center(centers, inverse, scale).view(out.shape[0], -1, self.centers_per_class)
            return torch.amax(every, 2, out=out)
        if self.spec.precision != "float32":
            self._rounded_product(centers, inverse, out)
            inverse = None
        else:
            torch.mm(self.x, centers.t(), out=out)
        if inverse is not None:
            return out.mul_(inverse * scale)
        if self.bias is not None:
            out.add_(self.bias[self._ids(low, high)].to(out.dtype))
        return out if scale == 1.0 else out.mul_(scale)

    def _every_center(self, centers: Tensor, inverse: Tensor | None, scale: float) -> Tensor:
        """Scores (B, n k) of all k centers of a chunk's classes."""
        centers = centers.view(-1, self.x.shape[1])
        if self.spec.precision != "float32":
            return self._rounded_product(centers, inverse, None).mul_(scale)
        every = self.x @ centers.t()
        return every.mul_(scale if inverse is None else inverse * scale)

    def _rounded_product(self, centers: Tensor, inverse: Tensor | None, out: Tensor | None) -> Tensor:
        """Cosines (B, n) from unit rows that are rounded; dot products without normalisation."""
        units = centers if inverse is None else centers * inverse[:, None]
        product = matmul(self.x, units.t(), self.spec.precision, out=out)
        return product.to(self.x.dtype)

    def nearest_center_only(self, chunk: Chunk, cos_grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Centers (n k, D), scores and gradients (B, n k) of a chunk: a class's gradient goes to its nearest center."""
        every = self._every_center(chunk.centers, chunk.inverse_norms, self.spec.score_scale)
        nearest = every.view(every.shape[0], -1, self.centers_per_class).argmax(2, keepdim=True)
        spread = cos_grad.new_zeros((*cos_grad.shape, self.centers_per_class))
        spread = spread.scatter_(2, nearest, cos_grad[:, :, None]).flatten(1)
        return chunk.centers.view(-1, self.x.shape[1]), every, spread


def iter_cosines(chunks: ClassChunks) -> Iterator[Chunk]:
    """Every chunk of classes with its bare cosines as scores; the buffers are used again."""
    buffer = chunks.buffer()
    norms = chunks.x.new_empty(chunks.width * chunks.centers_per_class) if chunks.spec.normalize else None
    for low, high in chunks.ranges:
        own = None if norms is None else norms[: (high - low) * chunks.centers_per_class]
        yield chunks.compute(low, high, chunks.view(buffer, low, high), own, 1.0, known=False)
