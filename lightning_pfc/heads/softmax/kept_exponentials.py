"""One pass over the classes forward, two plain products backward: for logits that are bounded and linear in the cosine.

Shapes: B rows of the gathered batch, P positives a row, K sampled rows of this rank's centers, n rows of a chunk, D
embedding.

Forward, ``E = exp(s cos - reference)`` of every negative is computed once and rounded to the dtype in which it is kept;
its sums over the classes are those of the rounded numbers, in float32. With ``c_i = s g_i / Z_i``, where ``g`` is what
comes back to the log-sum-exp and ``Z`` the sum over all ranks, the gradients are two products of what is there::

    dX = c (E U)        dU = E^T (c X)        dw = (dU - u (u . dU)) / |w|

``E U`` does not need ``c`` and is taken in the forward pass, while a chunk's rows are at hand. Chunks beyond the memory
budget compute ``E`` again for ``dU`` alone. The targets are kept apart, in float32; see
:mod:`lightning_pfc.heads.softmax.targets_apart`. The sum of the negatives' logits, where label smoothing asks for it,
is ``s x . (sum of unit rows)`` and needs no pass over scores.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_pfc.buffers.scratch import scratch
from lightning_pfc.heads.softmax.center_gradients import CenterGradSink
from lightning_pfc.heads.softmax.chunk_rooms import ChunkRooms
from lightning_pfc.heads.softmax.class_chunks import ClassChunks
from lightning_pfc.heads.softmax.exponentials import chunk_exponentials, reference_of, too_small
from lightning_pfc.heads.softmax.precision import ARITHMETIC, Arithmetic
from lightning_pfc.heads.softmax.targets_apart import TargetsApart
from lightning_pfc.heads.softmax.unit_rows import center_gradient_, unit_rows
from lightning_pfc.kernels.library import takes_kernels
from lightning_pfc.kernels.sums import begin_gradients, wide_dtype
from lightning_pfc.kernels.unit_rows import gather_normalize_round, project_rows_
from lightning_pfc.matmul.in_precision import HALF, matmul, round_operand


@dataclass(frozen=True)
class ExponentialPlan:
    """What a pass is given beside its tensors; the same forward and backward.

    Attributes:
        num_kept: how many of the first chunks have their exponentials kept.
        fused: whether product and exponential are one pass.
    """

    num_kept: int
    fused: bool


class Kept(NamedTuple):
    """What the forward pass keeps.

    Attributes:
        exponentials: flat, of the chunks that are kept, (B, n) one after the other.
        inverse: 1 / |w| of every chunk, (n,) each.
        x_sums: (B, D) ``E U``; None where no gradient of the embeddings is wanted, or it is computed later.
        unit_sum: (D,) sum of the unit rows, where the sum of the logits is wanted.
    """

    exponentials: Tensor
    inverse: tuple[Tensor, ...]
    x_sums: Tensor | None
    unit_sum: Tensor | None

    @classmethod
    def of(cls, tensors: Sequence[Any]) -> Kept:
        """From what :attr:`tensors` gave."""
        exponentials, x_sums, unit_sum, *inverse = tensors
        return cls(exponentials, tuple(inverse), x_sums, unit_sum)

    @property
    def tensors(self) -> list[Tensor | None]:
        """All of them, in one list."""
        return [self.exponentials, self.x_sums, self.unit_sum, *self.inverse]


class Begun(NamedTuple):
    """What a backward pass begins with.

    Attributes:
        factors: (B,) c.
        weighted: (B, D) c X in the dtype of an operand; no rows where that is not wanted.
        x_grad: (B, D) c E U; None where it is still to be computed.
    """

    factors: Tensor
    weighted: Tensor
    x_grad: Tensor | None


class ClassExponentials:
    """Goes over the classes, forward and backward.

    Args:
        chunks: the classes; embeddings are unit rows.
        targets: of the batch.
        plan: the rest.
    """

    def __init__(self, chunks: ClassChunks, targets: TargetsApart, plan: ExponentialPlan) -> None:
        self.chunks, self.x, self.targets, self.plan = chunks, chunks.x, targets, plan
        self.arithmetic: Arithmetic = ARITHMETIC[chunks.spec.precision]
        self._valid = chunks.rows.valid
        self._kept_dtype = self.x.dtype if self.arithmetic.kept == torch.float32 else self.arithmetic.kept
        self._spare: Tensor | None = None
        self._rooms = ChunkRooms(self.x, chunks.width)

    @property
    def _gathers(self) -> bool:
        """Whether kernels read the centers where they are stored."""
        return takes_kernels(self.x) and not self.chunks.offloaded

    @functools.cached_property
    def _queries(self) -> Tensor:
        """Embeddings of length ``scale`` as operands."""
        x, scale, operands = self.x, self.chunks.spec.scale, self.arithmetic.operands
        if takes_kernels(x) and operands != torch.float32 and self.arithmetic.precision != "float16x3":
            return torch.mul(x, scale, out=torch.empty_like(x, dtype=operands))  # multiplied and rounded in one kernel
        return round_operand(x * scale, self.arithmetic.precision)

    @property
    def reference(self) -> float:
        """What was taken off every logit."""
        return reference_of(self.chunks.spec.scale, fused=self.plan.fused)

    @property
    def sums_forward(self) -> bool:
        """Whether ``E U`` is taken in the forward pass; not where slopes have to be split into two float16."""
        return self.arithmetic.gradients != "float16x3"

    # --- forward ------------------------------------------------------------------------------------------------------

    def forward(self, *, wants_x_grad: bool) -> tuple[Tensor, Kept]:
        """Sums (B,) of this rank's exponentials, in float64 where there are several chunks, and what backward needs."""
        x, ranges = self.x, self.chunks.ranges
        stored = sum(high - low for low, high in ranges[: self.plan.num_kept]) * x.shape[0]
        room = scratch((stored,), x, self._kept_dtype)
        inverses, sums, x_sums = [], None, None
        unit_sum = x.new_zeros(x.shape[1]) if self.chunks.spec.sums_logits else None
        for number, (low, high) in enumerate(ranges):
            operand, inverse = self._unit_operand(low, high)
            inverses.append(inverse)
            exponentials = self._room(number, room)
            sums = self._add_sums(sums, self._fill(number, operand, exponentials))
            if wants_x_grad and self.sums_forward:
                x_sums = self._add_x_sums(x_sums, exponentials, operand)
            if unit_sum is not None:
                centers, valid = self.chunks.centers(low, high), self._valid
                units = unit_rows(centers, self._rooms.rows(high - low))[0]
                unit_sum.add_(units.sum(0) if valid is None else valid[low:high].to(units.dtype) @ units)
        if sums is None:  # nothing of this step lives here
            sums = x.new_zeros(x.shape[0])
        if x_sums is None and wants_x_grad and self.sums_forward:
            x_sums = torch.zeros_like(x)
        return sums, Kept(room, tuple(inverses), x_sums, unit_sum)

    def _add_sums(self, sums: Tensor | None, found: Tensor) -> Tensor:
        """Those of one chunk added to those of the chunks before, in a wide dtype."""
        if sums is None:
            return found if len(self.chunks.ranges) == 1 else found.to(wide_dtype(found))
        return sums.add_(found)

    def _unit_operand(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        """Unit rows (n, D) of a chunk as operands, and 1 / |w| (n,)."""
        chunks, precision = self.chunks, self.arithmetic.precision
        if not self._gathers or precision == "float16x3":
            units, inverse = unit_rows(chunks.centers(low, high), self._rooms.rows(high - low))
            rounded = None if precision not in HALF else self._rooms.rows(high - low, HALF[precision])
            return round_operand(units, precision, rounded), inverse
        return gather_normalize_round(*chunks.stored_rows(low, high), self.arithmetic.operands)

    def lacks_terms(self, sums: Tensor) -> bool:
        """Whether the pass has to be taken again without fusion; looks at values, which a CPU has at hand."""
        return self.plan.fused and too_small(sums, self.chunks.num_rows)

    def _fill(self, number: int, units: Tensor, out: Tensor) -> Tensor:
        low, high = self.chunks.ranges[number]
        return chunk_exponentials(
            self._queries,
            units,
            self.arithmetic,
            self.chunks.spec.scale,
            self.chunks.offsets(low, high),
            self.targets,
            number,
            out,
            None if takes_kernels(out) else self._rooms.scores(high - low),
            fused=self.plan.fused,
        )

    def _room(self, number: int, stored: Tensor) -> Tensor:
        """Where a chunk's exponentials (B, n) go."""
        batch, (low, high) = self.x.shape[0], self.chunks.ranges[number]
        if number < self.plan.num_kept:
            return stored[low * batch : high * batch].view(batch, high - low)
        if self._spare is None:
            self._spare = scratch((batch * self.chunks.width,), self.x, self._kept_dtype)
        return self._spare[: (high - low) * batch].view(batch, high - low)

    def _add_x_sums(self, x_sums: Tensor | None, exponentials: Tensor, units: Tensor) -> Tensor:
        precision = self.arithmetic.gradients
        if x_sums is None:
            return matmul(exponentials, units, precision, may_round_result=True)
        if precision == "float32":
            return x_sums.addmm_(exponentials, units)
        return x_sums.add_(matmul(exponentials, units, precision, may_round_result=True))

    # --- backward -----------------------------------------------------------------------------------------------------

    def begin_backward(self, kept: Kept, logsumexp: Tensor, grad: Tensor, *, wants_centers: bool) -> Begun:
        """What both gradients begin with.

        Args:
            kept: by the forward pass.
            logsumexp: (B,) of all ranks, wide.
            grad: (B,) what comes back to it.
            wants_centers: whether there is a gradient of the centers.
        """
        dtype = ARITHMETIC[self.arithmetic.gradients].operands if self.sums_forward and wants_centers else None
        if self.x.dtype == torch.float64 and dtype == torch.float32:
            dtype = torch.float64
        ready = kept.x_sums if takes_kernels(self.x) else None  # on a CPU it is multiplied and added up in one pass
        factors, weighted, x_grad = begin_gradients(
            self.x, ready, logsumexp, grad, self.chunks.spec.scale, self.reference, dtype,
            kernels=None if takes_kernels(self.x) else (),
        )  # fmt: skip
        return Begun(factors, weighted, None if ready is None else x_grad)

    def backward(
        self,
        kept: Kept,
        begun: Begun,
        target_grad: Tensor,
        everywhere: Tensor | None,
        sink: CenterGradSink,
    ) -> Tensor | None:
        """The centers' gradient into ``sink``; the embeddings' (B, D) where the forward pass did not sum for it.

        Args:
            kept: by the forward pass.
            begun: by :meth:`begin_backward`.
            target_grad: (B, P) of the targets' cosines.
            everywhere: (D,) added to the gradient of every valid unit row; None for nothing.
            sink: takes the gradients, chunk by chunk.
        """
        late = None if self.sums_forward else torch.zeros_like(self.x)
        if late is None and not sink.is_wanted:
            return None
        weighted = self.x if late is not None else round_operand(begun.weighted, self.arithmetic.gradients)
        for number, (low, high) in enumerate(self.chunks.ranges):
            of_units = sink.takes_unit_grad and late is None
            reads = late is not None or not (of_units or self._gathers)
            rows = self.chunks.centers(low, high) if reads else self.x[:0]
            inverse = kept.inverse[number]
            exponentials = self._again(number, kept)
            if late is not None:  # slopes first: what is split into float16 must not span e^128
                exponentials = exponentials * begun.factors[:, None]
                late.add_(matmul(exponentials, rows * inverse[:, None], self.arithmetic.gradients))
            if not sink.is_wanted:
                continue
            grad = sink.room(low, high)
            self._unit_grad(exponentials.t(), weighted, grad)
            if everywhere is not None:
                grad += everywhere if self._valid is None else self._valid[low:high, None] * everywhere
            self.targets.add_center_grad_(number, grad, self.x, target_grad)
            if not of_units and self._gathers:
                grad = project_rows_(grad, *self.chunks.stored_rows(low, high))
            elif not of_units:
                grad = center_gradient_(grad, rows, inverse, self._rooms.rows(high - low))
            sink.written(low, high, grad, of_units=of_units)
        return late

    def _again(self, number: int, kept: Kept) -> Tensor:
        exponentials = self._room(number, kept.exponentials)
        if number >= self.plan.num_kept:
            self._fill(number, self._unit_operand(*self.chunks.ranges[number])[0], exponentials)
        return exponentials

    def _unit_grad(self, exponentials: Tensor, weighted: Tensor, out: Tensor) -> None:
        """``E^T (c X)`` (n, D) into ``out``, of the compute dtype."""
        precision, room = self.arithmetic.gradients, None
        if precision == "bfloat16" and out.device.type == "cpu":
            room = self._rooms.rows(out.shape[0], torch.bfloat16)
        matmul(exponentials, weighted, precision, out=out, may_round_result=True, room=room)
