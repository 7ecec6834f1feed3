"""The step of a head's rows inside its backward pass, as soon as their gradients are known."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from lightning_pfc.distributed.class_rows import class_rows
from lightning_pfc.optim.fused_rows import FusedRows
from lightning_pfc.optim.row_step import RowStep, StepsRows
from lightning_pfc.optim.rows import RowChunk, clamp_padding


class RowUpdate:
    """Lets a head's backward pass apply the optimizer to the rows of a chunk as soon as their gradients are known.

    So no gradient of the sampled rows is ever held whole. It is what ``class_rows(param).update`` is while an optimizer
    with ``update_in_backward=True`` holds the parameter. The head calls :meth:`begin`, :meth:`apply` for every chunk,
    and gives autograd no gradient for the parameter; ``optimizer.step()`` then finds nothing left to do for it.

    Since a row is changed before the whole gradient is known, this cannot be combined with clipping by norm (the caller
    of the clipping has to refuse, see :func:`updates_in_backward`), with several backward passes per step, or with a
    loss scaler.

    Args:
        optimizer: The one that holds the parameter; kept weakly. None makes one that is not alive.
    """

    def __init__(self, optimizer: StepsRows | None) -> None:
        # No reference to the parameter: a weak one would forbid torch.utils.swap_tensors to give it storage.
        self._optimizer = (lambda: None) if optimizer is None else weakref.ref(optimizer)
        self._step: RowStep | None = None
        self._fused: FusedRows | None = None
        self.done = False

    def __reduce__(self) -> tuple[type[RowUpdate], tuple[None]]:
        return RowUpdate, (None,)  # a pickled parameter leaves its optimizer behind

    @property
    def is_alive(self) -> bool:
        """Whether the optimizer still exists."""
        return self._optimizer() is not None

    @property
    def projects(self) -> bool:
        """Whether :meth:`apply` can take the gradient of unit rows; known after :meth:`begin`."""
        return self._fused is not None

    @torch.no_grad()
    def begin(self, param: Tensor) -> None:
        """Counts a step.

        Args:
            param: The parameter to which this object belongs.

        Raises:
            RuntimeError: If the rows were updated since the last ``step()`` or ``zero_grad()`` of the optimizer.
        """
        optimizer = self._optimizer()
        if optimizer is None:
            raise RuntimeError("the optimizer of this RowUpdate does not exist any more.")
        if self.done:
            raise RuntimeError(
                f"{type(optimizer).__name__}(update_in_backward=True) allows one backward pass per optimizer step, and "
                "this is another: gradients cannot be accumulated when they are never held. Use "
                "accumulate_grad_batches=1, or update_in_backward=False."
            )
        self.done = True
        self._step = optimizer._begin_rows(param, optimizer._group_of(param))
        self._fused = FusedRows.of(self._step)

    @torch.no_grad()
    def apply(
        self,
        rows: Tensor | slice,
        grad: Tensor,
        *,
        weight: Tensor | None = None,
        num_real: Tensor | None = None,
        projects: bool = False,
    ) -> None:
        """Updates rows, which must come in no other chunk.

        Args:
            rows: Row numbers ``(n,)`` int64, or a slice.
            grad: ``(n, *rest)`` floating.
            weight: What these rows of the parameter are in float32, if the caller has read them; it is overwritten.
            num_real: 0-d int64 tensor: how many leading entries are real, if the others are padding (which may repeat a
                row of this or another chunk, and is left alone). None if all are.
            projects: Whether ``grad`` is that of the unit rows; only where :attr:`projects`.
        """
        if self._step is None:
            raise RuntimeError("RowUpdate.apply was called before RowUpdate.begin.")
        if self._fused is not None:
            self._fused.apply(rows, grad, num_real, projects=projects)
            return
        chunk = RowChunk(rows, grad)
        if num_real is not None:
            if isinstance(rows, slice):
                raise TypeError("num_real is for row numbers; a slice has no padding.")
            position, live = clamp_padding(0, grad.shape[0], num_real)
            chunk = RowChunk(rows.index_select(0, position), grad.index_select(0, position), live)
            weight = None if weight is None else weight.index_select(0, position)
        self._step.apply(chunk, weight)

    def end(self) -> None:
        """Says that all rows were updated."""
        self._step = self._fused = None


def row_update(param: Tensor) -> RowUpdate | None:
    """What updates the rows of ``param`` inside the backward pass, or None if ``optimizer.step()`` does."""
    record = class_rows(param)
    update: RowUpdate | None = None if record is None else record.update
    return update if update is not None and update.is_alive else None
