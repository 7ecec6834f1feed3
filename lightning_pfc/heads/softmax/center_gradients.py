"""Where the centers' gradients go, a chunk at a time: to autograd, or to an optimizer that steps at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from lightning_pfc.buffers.host_rows import bring_back
from lightning_pfc.buffers.scratch import scratch
from lightning_pfc.distributed.class_rows import GivenRows, class_rows
from lightning_pfc.distributed.collectives import all_reduce
from lightning_pfc.heads.softmax.class_chunks import Chunk, ClassChunks
from lightning_pfc.heads.softmax.cosine_gradient import CosineGradient


class CenterGradSink(ABC):
    """Takes the gradient of one chunk after the other.

    Args:
        chunks: of the backward pass.
        num_rows: rows of center gradients that are held at a time; 0 where none are wanted.
        row_sparse: whether autograd gets gradients of centers and of the bias as COO over the sampled rows.
    """

    def __init__(self, chunks: ClassChunks, num_rows: int, row_sparse: tuple[bool, bool]) -> None:
        self.chunks, self.row_sparse, self.is_wanted = chunks, row_sparse, num_rows > 0
        self.values = scratch((num_rows, chunks.weight.shape[1]), chunks.x) if num_rows else None
        self._bias = None if chunks.bias is None else chunks.x.new_empty(chunks.num_rows)

    def add(self, chunk: Chunk, cos_grad: CosineGradient) -> None:
        """Take the gradient of a chunk's centers and biases."""
        if self._bias is not None:
            cos_grad.write_bias_grad(self._bias[chunk.low : chunk.high])
        if self.values is None:
            return
        out = self.room(chunk.low, chunk.high)
        cos_grad.write_center_grad(out.view(-1, self.chunks.x.shape[1]), self.chunks.x)
        self.written(chunk.low, chunk.high, self.chunks.chain_(out, chunk.low, chunk.high))

    @abstractmethod
    def room(self, low: int, high: int) -> Tensor:
        """Where the gradient (n, D) of the centers of a chunk [low, high) is to be written, if one is wanted."""

    @property
    def takes_unit_grad(self) -> bool:
        """Whether it may be given the gradient of the unit rows instead."""
        return False

    @abstractmethod
    def written(self, low: int, high: int, grad: Tensor, *, of_units: bool = False) -> None:
        """The gradient of a chunk's centers is there, in its room; ``of_units``: that of its unit rows."""

    @abstractmethod
    def weight_grad(self) -> Tensor | None:
        """What autograd is to have of the centers, at the end."""

    def bias_grad(self) -> Tensor | None:
        """What autograd is to have of the biases."""
        if self._bias is None or self.chunks.bias is None:
            return None
        return self._for_autograd(self._bias, self.chunks.bias, self.row_sparse[1])

    def _for_autograd(self, values: Tensor, parameter: Tensor, row_sparse: bool) -> Tensor:
        """Dense like the parameter, or COO over the sampled rows; one all-reduce over the copies of a head."""
        chunks, index = self.chunks, self.chunks.index
        values = bring_back(all_reduce(values, chunks.spec.replica_group).to(parameter.dtype), parameter.device)
        if index is not None and parameter.device != index.device:
            index = chunks.stored_index
        if row_sparse:
            ids = torch.arange(parameter.shape[0], device=parameter.device) if index is None else index
            if (record := class_rows(parameter)) is not None:
                real = chunks.rows.count_valid(0, chunks.num_rows)
                record.given = GivenRows(ids, real, index is None, chunks.spec.kernels)
            # Ascending and distinct (but for padding), so nothing is left to coalesce.
            return torch.sparse_coo_tensor(
                ids[None], values, parameter.shape, is_coalesced=chunks.rows.valid is None, check_invariants=False
            )
        return values if index is None else torch.zeros_like(parameter).index_add_(0, index, values)


class AccumulateCenterGrads(CenterGradSink):
    """Keeps all rows for autograd, straight in their final storage; none where they are not wanted."""

    def __init__(self, chunks: ClassChunks, row_sparse: tuple[bool, bool], *, wanted: bool) -> None:
        super().__init__(chunks, chunks.num_rows if wanted else 0, row_sparse)
        self._wanted = wanted

    def room(self, low: int, high: int) -> Tensor:
        """Where it stays."""
        assert self.values is not None
        return self.values[low:high]

    def written(self, low: int, high: int, grad: Tensor, *, of_units: bool = False) -> None:
        """It stays where it is."""

    def weight_grad(self) -> Tensor | None:
        """Dense, or COO over the sampled rows."""
        if not self._wanted:
            return None
        values = self.chunks.x.new_empty((0, self.chunks.weight.shape[1])) if self.values is None else self.values
        return self._for_autograd(values, self.chunks.weight, self.row_sparse[0])


class UpdateCentersInBackward(CenterGradSink):
    """Hands each chunk's gradient to an optimizer that steps its rows at once; autograd gets none.

    One all-reduce a chunk over the copies of a replicated head.

    Args:
        chunks: of the backward pass.
        row_sparse: see :class:`CenterGradSink`.
        update: a :class:`~lightning_pfc.optim.row_update.RowUpdate`.
    """

    def __init__(self, chunks: ClassChunks, row_sparse: tuple[bool, bool], update: Any) -> None:
        super().__init__(chunks, chunks.width, row_sparse)
        self._update = update
        update.begin(chunks.weight)

    def room(self, low: int, high: int) -> Tensor:
        """The same for all chunks."""
        assert self.values is not None
        return self.values[: high - low]

    @property
    def takes_unit_grad(self) -> bool:
        """Where the optimizer's kernel projects by itself."""
        return bool(self._update.projects) and self.chunks.spec.blended is None

    def written(self, low: int, high: int, grad: Tensor, *, of_units: bool = False) -> None:
        """Step the rows."""
        weight, real = self.chunks.weight, self.chunks.rows.count_valid(low, high)
        real = None if real is None else real.to(weight.device)
        grad = bring_back(all_reduce(grad, self.chunks.spec.replica_group), weight.device)
        self._update.apply(self.chunks.stored_ids(low, high), grad, num_real=real, projects=of_units)

    def weight_grad(self) -> Tensor | None:
        """None: all rows were stepped."""
        self._update.end()
        return None


def center_grad_sink(chunks: ClassChunks, row_sparse: tuple[bool, bool], *, wanted: bool) -> CenterGradSink:
    """Where the center gradients go: to an optimizer that steps inside the backward pass, else to autograd."""
    record = class_rows(chunks.weight)
    update = None if record is None else record.update
    if wanted and update is not None and update.is_alive:
        return UpdateCentersInBackward(chunks, row_sparse, update)
    return AccumulateCenterGrads(chunks, row_sparse, wanted=wanted)
