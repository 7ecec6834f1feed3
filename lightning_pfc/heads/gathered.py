"""The batch of all ranks: checked on each, agreed on by all, and brought together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_pfc.distributed.collectives import all_gather_rows, gather_batch
from lightning_pfc.distributed.comm import Comm
from lightning_pfc.heads.validation import DeferredCheck, batch_error, second_label_error
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
        group_sizes: batch of every rank of the shard group.
        weights: (B,) what a row counts, where each picture is there twice, with one label and with the other; None
            where every row is a picture.
    """

    x: Tensor
    labels: Tensor
    all_labels: Tensor
    sizes: list[int]
    own: slice
    offset: int
    group_sizes: list[int]
    weights: Tensor | None = None

    @property
    def num_pictures(self) -> int:
        """Of all ranks."""
        return sum(self.sizes) if self.weights is None else sum(self.sizes) // 2

    @property
    def own_pictures(self) -> slice:
        """This rank's rows with the first label."""
        start, stop = self.own.start, self.own.stop
        return self.own if self.weights is None else slice(start, start + (stop - start) // 2)

    def places(self) -> Tensor:
        """Place (B,) of each row in the global batch, whoever brought it; second labels come after all first ones."""
        if self.weights is None:
            return torch.arange(self.x.shape[0], device=self.x.device) + self.offset
        first, second = self._halves()
        places = torch.arange(first.shape[0], device=self.x.device) + self.offset // 2
        return (
            torch.empty_like(self.labels)
            .index_copy_(0, first, places)
            .index_copy_(0, second, places + self.num_pictures)
        )

    def labelled(self) -> list[tuple[Tensor, Tensor, Tensor | float]]:
        """Embeddings (B', D), labels (B',) and what they count, each picture once: once over, or for either label."""
        if self.weights is None:
            return [(self.x, self.labels, 1.0)]
        return [(self.x[half], self.labels[half], self.weights[half].mean()) for half in self._halves()]

    def _halves(self) -> tuple[Tensor, Tensor]:
        """Rows with the first label, and rows with the second."""
        first, start = [], 0
        for size in self.group_sizes:
            first.append(torch.arange(start, start + size // 2, device=self.x.device))
            start += size
        second = [rows + size // 2 for rows, size in zip(first, self.group_sizes, strict=True)]
        return torch.cat(first), torch.cat(second)


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

    def gather(
        self, embeddings: Tensor, labels: Tensor, tag: str, other: Tensor | None = None, share: Tensor | float = 1.0
    ) -> Gathered:
        """Check this rank's input, agree with the others, and bring the batch together.

        Collectives: an exchange on the CPU, an all-gather of embeddings and labels over the shard group; with several
        copies of the head, an all-gather of labels over all ranks; with second labels, one of the shares.

        Args:
            embeddings: (b, D) floating; differentiable.
            labels: (b,) int64.
            tag: what the ranks are about to do; the same on all.
            other: (b,) int64, a second label for each row; None for none.
            share: () or (b,) in [0, 1], what the first label counts, if there are two.
        """
        comm = self.comm
        error = self.deferred.pending() or batch_error(
            embeddings, labels, self.embedding_dim, self.num_classes, self.check_finite
        )
        if error is None and other is not None:
            error = second_label_error(labels, other, share, self.num_classes)
        if error is None:
            if other is not None:
                embeddings, labels = torch.cat([embeddings, embeddings]), torch.cat([labels, other])
            self.deferred.watch(embeddings, labels, self.num_classes, self.check_finite)
        batch = embeddings.shape[0] if error is None else 0
        told = [batch, int(self.training), embeddings.element_size(), int(other is not None)]
        answers = comm.agreement.exchange(tag, told, error)
        sizes = [numbers[0] for numbers in answers]
        facts = ("head.training", "the embeddings' element size in bytes", "whether rows have a second label")
        for place, what in enumerate(facts, 1):
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
        offset, own = sum(sizes[:first]), slice(before, before + batch)
        weights = None
        if other is not None:
            first_share = torch.as_tensor(share).to(other.device, compute).expand(other.shape)
            every = gather_uneven(torch.cat([first_share, 1.0 - first_share]), sizes, comm)
            weights = every[offset : offset + x.shape[0]]
        return Gathered(x.to(compute), group_labels, all_labels, sizes, own, offset, group_sizes, weights)


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
