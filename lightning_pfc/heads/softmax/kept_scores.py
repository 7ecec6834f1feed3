"""Scores that the forward pass keeps for the backward pass, as many as a budget allows; others are computed again."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from lightning_pfc.buffers.scratch import scratch
from lightning_pfc.heads.softmax.class_chunks import Chunk, ClassChunks


class KeptScores:
    """One allocation for the scores of the first chunks, so that the allocator sees few sizes, and all inverse norms.

    Args:
        chunks: the classes.
        tensors: what the forward pass kept; None in the forward pass itself.
    """

    def __init__(self, chunks: ClassChunks, tensors: tuple[Tensor, Tensor | None] | None = None) -> None:
        self._chunks = chunks
        batch = chunks.x.shape[0]
        chunk_bytes = batch * chunks.width * chunks.x.element_size()
        self._num_kept = min(len(chunks.ranges), chunks.spec.memory_budget // max(1, chunk_bytes))
        if tensors is None:
            kept_classes = sum(high - low for low, high in chunks.ranges[: self._num_kept])
            num_norms = chunks.num_rows * chunks.centers_per_class
            tensors = (
                scratch((kept_classes * batch,), chunks.x),
                chunks.x.new_empty(num_norms) if chunks.spec.normalize else None,
            )
        self.tensors = tensors

    def compute(self) -> Iterator[Chunk]:
        """Every chunk of the forward pass; scores are kept where there is room, else in a buffer that is used again."""
        shared, scale = self._chunks.buffer(), self._chunks.spec.score_scale
        for i, (low, high) in enumerate(self._chunks.ranges):
            out = self._slot(low, high) if i < self._num_kept else self._chunks.view(shared, low, high)
            yield self._chunks.compute(low, high, out, self._norms(low, high), scale, known=False)

    def replay(self) -> Iterator[Chunk]:
        """The same chunks in the backward pass."""
        shared, scale = self._chunks.buffer(), self._chunks.spec.score_scale
        for i, (low, high) in enumerate(self._chunks.ranges):
            norms = self._norms(low, high)
            if i < self._num_kept:
                yield self._chunks.chunk(low, high, self._chunks.centers(low, high), norms, self._slot(low, high))
            else:
                yield self._chunks.compute(low, high, self._chunks.view(shared, low, high), norms, scale, known=True)

    def _slot(self, low: int, high: int) -> Tensor:
        batch = self._chunks.x.shape[0]
        return self.tensors[0][low * batch : high * batch].view(batch, high - low)

    def _norms(self, low: int, high: int) -> Tensor | None:
        k, norms = self._chunks.centers_per_class, self.tensors[1]
        return None if norms is None else norms[low * k : high * k]
