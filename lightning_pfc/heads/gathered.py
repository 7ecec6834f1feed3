"""The batch of all ranks: checked on each, agreed on by all, and brought together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_pfc.distributed.collectives import all_gather_rows, gather_batch
from lightning_pfc.distributed.comm import Comm
from lightning_pfc.heads.validation import DeferredCheck, batch_error
from lightning_pfc.losses import Rows


class Gathered(NamedTuple):
    """A batch as every rank of a shard group sees it.

    Attributes:
        x: (B, D) embeddings of the shard group, in the compute dtype.
        labels: (B,) of the shard group.
        all_labels: (B,) of all ranks.
        sizes: batch of every rank.
        own: this rank's rows among the shard group's.
        offset: global place of the shard group's first row.
    """

    x: Tensor
    labels: Tensor
    all_labels: Tensor
    sizes: list[int]
    own: slice
    offset: int


@dataclass(frozen=True)
class Gatherer:
    """Brings a batch together.

    Attributes:
        comm: the ranks.
        deferred: what checks values on an accelerator.
        embedding_dim, num_classes, check_finite: what a good batch is.
        training: must be the same on every rank.
    """

    comm: Comm
    deferred: DeferredCheck
    embedding_dim: int
    num_classes: int
    check_finite: bool
    training: bool

    def gather(self, embeddings: Tensor, labels: Tensor, tag: str) -> Gathered:
        """Check this rank's input, agree with the others, and bring the batch together.

        Collectives: an exchange on the CPU, an all-gather of embeddings and labels over the shard group; with several
        copies of the head, an all-gather of labels over all ranks.

        Args:
            embeddings: (b, D) floating; differentiable.
            labels: (b,) int64.
            tag: what the ranks are about to do; the same on all.
        """
        comm = self.comm
        error = self.deferred.pending() or batch_error(
            embeddings, labels, self.embedding_dim, self.num_classes, self.check_finite
        )
        if error is None:
            self.deferred.watch(embeddings, labels, self.num_classes, self.check_finite)
        batch = embeddings.shape[0] if error is None else 0
        answers = comm.agreement.exchange(tag, [batch, int(self.training), embeddings.element_size()], error)
        sizes = [numbers[0] for numbers in answers]
        for place, what in ((1, "head.training"), (2, "the embeddings' element size in bytes")):
            if len({numbers[place] for numbers in answers}) > 1:
                raise ValueError(
                    f"{what} differs between ranks: {[numbers[place] for numbers in answers]} by rank; it must "
                    "be the same."
                )
        if sum(sizes) == 0:
            raise ValueError("The global batch is empty: embeddings has shape (0, D) on every rank.")
        first = comm.rank - comm.shard_rank
        group_sizes = sizes[first : first + comm.shard_size]
        x, group_labels = gather_batch(embeddings, labels, group_sizes, comm.shard_group, float(comm.world_size))
        all_labels = group_labels
        if comm.num_replicas > 1:
            all_labels = gather_uneven(labels, sizes, comm)
        before = sum(group_sizes[: comm.shard_rank])
        compute = torch.float64 if x.dtype == torch.float64 else torch.float32
        return Gathered(
            x.to(compute), group_labels, all_labels, sizes, slice(before, before + batch), sum(sizes[:first])
        )


def gather_uneven(own: Tensor, sizes: list[int], comm: Comm) -> Tensor:
    """Stack ``own`` (b, ...) of all ranks to (B, ...), without gradient. One all-gather over all ranks."""
    longest = max(sizes)
    padded = own.new_zeros((longest, *own.shape[1:]))
    padded[: own.shape[0]] = own
    every = all_gather_rows(padded, comm.world_size, comm.group)
    return torch.cat([every[r * longest : r * longest + size] for r, size in enumerate(sizes)])


def rows_of_all(rows: Rows, batch: Gathered, comm: Comm, extra: Tensor | None = None) -> tuple[Rows, Tensor]:
    """Facts about the rows of all ranks, and ``extra`` (B,); with one copy of the head these are given back."""
    extra = rows.norms.detach() if extra is None else extra
    if comm.num_replicas == 1:
        return rows, extra
    columns = [extra, rows.norms.detach()]
    if rows.target_cosine is not None:
        columns.append(rows.target_cosine)
    every = gather_uneven(torch.stack(columns, 1)[batch.own], batch.sizes, comm)
    known = Rows(
        labels=batch.all_labels,
        norms=every[:, 1],
        target_cosine=every[:, 2] if rows.target_cosine is not None else None,
        seed=rows.seed,
        step=rows.step,
        index=torch.arange(every.shape[0], device=every.device),
    )
    return known, every[:, 0]
