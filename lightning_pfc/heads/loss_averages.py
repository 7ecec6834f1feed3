"""What a loss keeps from step to step as small tensors: moved on by each training forward, the same on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_pfc.distributed.collectives import all_gather_uneven
from lightning_pfc.distributed.comm import Comm
from lightning_pfc.heads.batch import GlobalBatch
from lightning_pfc.heads.recomputation import Pass
from lightning_pfc.losses import BatchInfo, Loss


@dataclass(frozen=True, eq=False)
class LossAverages:
    """The averages of one head's loss.

    Attributes:
        loss: whose they are.
        tensors: by name; moved on in place.
        comm: the ranks.
    """

    loss: Loss
    tensors: Mapping[str, Tensor]
    comm: Comm

    @torch.no_grad()
    def update(self, batch: GlobalBatch, info: BatchInfo, now: Pass) -> dict[str, Tensor]:
        """The averages as this pass uses them; they move on, perhaps before the backward pass."""
        if now.averages is None:
            if now.moves_on and self.tensors:
                self.loss.update_state(dict(self.tensors), self._of_all_ranks(batch, info)[0])
            now.averages = {name: value.clone() for name, value in self.tensors.items()}
        return now.averages

    @torch.no_grad()
    def finish(self, batch: GlobalBatch, info: BatchInfo, logsumexp: Tensor, now: Pass) -> None:
        """Have the loss see the sums (B,) of this step, for averages that count from the next one."""
        if now.moves_on and self.tensors:
            self.loss.finish_state(dict(self.tensors), *self._of_all_ranks(batch, info, logsumexp.detach()))

    def _of_all_ranks(
        self, batch: GlobalBatch, info: BatchInfo, extra: Tensor | None = None
    ) -> tuple[BatchInfo, Tensor]:
        """What is known of the rows of all ranks, and ``extra`` (B,); with one copy of the head they are given back."""
        extra = info.norms.detach() if extra is None else extra
        if self.comm.num_replicas == 1:
            return info, extra
        columns = [extra, info.norms.detach()]
        if info.target_cosine is not None:
            columns.append(info.target_cosine)
        every = all_gather_uneven(torch.stack(columns, 1)[batch.own], batch.sizes, self.comm.group)
        known = BatchInfo(
            labels=batch.all_labels,
            norms=every[:, 1],
            target_cosine=every[:, 2] if info.target_cosine is not None else None,
            seed=info.seed,
            step=info.step,
            index=torch.arange(every.shape[0], device=every.device),
        )
        return known, every[:, 0]
