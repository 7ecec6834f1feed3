"""The centers of a batch's positives, as far as they live on this rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_pfc.buffers.host_rows import stage_pinned
from lightning_pfc.heads.softmax.spec import SampledRows
from lightning_pfc.heads.softmax.targets_apart import target_cosines, target_x_grad
from lightning_pfc.heads.softmax.unit_rows import unit_rows
from lightning_pfc.kernels.library import takes_kernels
from lightning_pfc.kernels.targets import target_cosines as read_cosines
from lightning_pfc.kernels.targets import target_gradients_


@dataclass(frozen=True, eq=False)
class OwnTargets:
    """Read where they are by kernels of an accelerator, else copied as unit rows.

    Attributes:
        columns: (B, P) int64, columns among the K sampled rows; -1 where another rank owns the class, or for none.
        weight: (c, D) centers.
        index: (K,) int64, the sampled rows where the centers are stored; None for all.
        units: (B P, D) unit rows in the compute dtype; None where they are not copied.
    """

    columns: Tensor
    weight: Tensor
    index: Tensor | None
    units: Tensor | None

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, columns: Tensor, rows: SampledRows) -> OwnTargets:
        """Of embeddings ``x`` (B, D). With centers on the host it waits for the device, unless they went ahead."""
        if takes_kernels(x) and weight.device == x.device:
            return cls(columns, weight.detach(), rows.index, None)
        ahead = None if rows.staged is None else rows.staged.take_there(weight)
        if ahead is not None and rows.staged is not None and ahead.shape[0] > 0:
            found = ahead.index_select(0, columns.flatten().clamp(min=0)).to(x.dtype)
            return cls(columns, weight, rows.staged.index, unit_rows(found)[0])
        index, ids = _stored_ids(weight, columns, rows, x.device)
        return cls(columns, weight, index, _unit_rows(weight, ids, x))

    def cosines(self, x: Tensor) -> Tensor:
        """Cosines (B, P) of unit rows ``x`` (B, D) with their targets; 0 where there is none here."""
        if self.units is None:
            return read_cosines(x, self.weight, self.index, self.columns)
        return target_cosines(x, self.units, self.columns)

    def x_grad(self, x: Tensor, target_grad: Tensor, known: Tensor | None) -> Tensor:
        """What reaches the embeddings through their targets' cosines, (B, D).

        Args:
            x: (B, D).
            target_grad: (B, P) of the cosines.
            known: (B, D), the rest of the gradient where that is known; perhaps overwritten. None for nothing.
        """
        if self.units is None:
            total = torch.zeros_like(x) if known is None else known
            target_gradients_(x, self.weight, self.index, self.columns, target_grad.contiguous(), total, None)
            return total
        own = target_x_grad(target_grad, self.units, self.columns)
        return own if known is None else own.add_(known)


def _stored_ids(
    weight: Tensor, targets: Tensor, rows: SampledRows, device: torch.device
) -> tuple[Tensor | None, Tensor]:
    """The sampled rows (K,) and those of the targets (B P,), of row 0 where there is none, where the centers are.

    One transfer for both: with centers on the host it waits for the device.
    """
    places, index = targets.flatten().clamp(min=0), rows.index
    if index is None:
        return None, places.to(weight.device)
    if index.shape[0] == 0:
        return index.to(weight.device), places.to(weight.device)
    if weight.device == device:
        return index, index.index_select(0, places)
    both = torch.cat([index, index.index_select(0, places)]).to(weight.device)
    return both[: index.shape[0]], both[index.shape[0] :]


def _unit_rows(weight: Tensor, ids: Tensor, x: Tensor) -> Tensor:
    """Unit rows (B P, D) in the compute dtype and on its device."""
    if weight.device == x.device:
        return unit_rows(weight.index_select(0, ids).to(x.dtype))[0]
    return unit_rows(stage_pinned(weight, ids).to(x.device, x.dtype, non_blocking=True))[0]
