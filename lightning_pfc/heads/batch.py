"""The batch of all ranks: one message of sizes and errors before the loss, then one all-gather brings it together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_pfc.distributed.collectives import all_gather_uneven, gather_batch
from lightning_pfc.distributed.comm import Comm
from lightning_pfc.heads.agreed_options import AgreedOptions
from lightning_pfc.heads.batch_checks import DeferredCheck, batch_error, second_label_error
from lightning_pfc.heads.several_labels import without_gaps
from lightning_pfc.heads.wrapped import RowWatch


class LabelView(NamedTuple):
    """Each sample once, with one of its labels.

    Attributes:
        embeddings: (B', D).
        labels: (B',).
        weight: what the samples count under that label.
    """

    embeddings: Tensor
    labels: Tensor
    weight: Tensor | float


class GlobalBatch(NamedTuple):
    """A batch as every rank of a shard group sees it.

    Attributes:
        embeddings: (B, D) of the shard group, as they came.
        labels: (B,) of the shard group; (B, P) of several positives, -1 for none.
        all_labels: the same of all ranks.
        sizes: batch of every rank.
        own: this rank's rows among the shard group's.
        offset: place of the shard group's first row among all.
        group_sizes: batch of every rank of the shard group.
        weights: (B,) what a row counts, where each sample is there twice, with one label and with the other; None
            where every row is a sample.
    """

    embeddings: Tensor
    labels: Tensor
    all_labels: Tensor
    sizes: list[int]
    own: slice
    offset: int
    group_sizes: list[int]
    weights: Tensor | None = None

    @property
    def x(self) -> Tensor:
        """Embeddings (B, D) in the compute dtype."""
        found = self.embeddings
        return found.to(torch.float64 if found.dtype == torch.float64 else torch.float32)

    @property
    def num_samples(self) -> int:
        """Of all ranks."""
        return sum(self.sizes) if self.weights is None else sum(self.sizes) // 2

    @property
    def own_samples(self) -> slice:
        """This rank's rows with the first label."""
        start, stop = self.own.start, self.own.stop
        return self.own if self.weights is None else slice(start, start + (stop - start) // 2)

    def sample_index(self) -> Tensor:
        """Place (B,) of each row in the global batch, whoever brought it; second labels come after all first ones."""
        if self.weights is None:
            return torch.arange(self.offset, self.offset + self.labels.shape[0], device=self.labels.device)
        first, second = self._halves()
        index = torch.arange(first.shape[0], device=self.labels.device) + self.offset // 2
        return (
            torch.empty_like(self.labels).index_copy_(0, first, index).index_copy_(0, second, index + self.num_samples)
        )

    def views(self) -> list[LabelView]:
        """Each sample once: once over, or for either label."""
        if self.weights is None:
            return [LabelView(self.x, self.labels, 1.0)]
        x = self.x
        return [LabelView(x[half], self.labels[half], self.weights[half].mean()) for half in self._halves()]

    def _halves(self) -> tuple[Tensor, Tensor]:
        """Rows with the first label, and rows with the second."""
        first, start = [], 0
        for size in self.group_sizes:
            first.append(torch.arange(start, start + size // 2, device=self.labels.device))
            start += size
        second = [rows + size // 2 for rows, size in zip(first, self.group_sizes, strict=True)]
        return torch.cat(first), torch.cat(second)


@dataclass(frozen=True)
class BatchGatherer:
    """Brings a batch together.

    Attributes:
        comm: the ranks.
        deferred: what checks values on an accelerator.
        look: gives the two numbers that :meth:`~lightning_pfc.heads.wrapped.RowWatch.judge` compares, or raises.
        embedding_dim, num_classes, check_finite: what a good batch is.
        training: must be the same on every rank.
        one_label: gives the error for labels (b, P), if there must be one a row; told whether there are second ones.
        options: of the head; the same on every rank.
    """

    comm: Comm
    deferred: DeferredCheck
    look: Callable[[], Sequence[int]]
    embedding_dim: int
    num_classes: int
    check_finite: bool
    training: bool
    one_label: Callable[[Tensor, bool], Exception | None]
    options: AgreedOptions

    def gather(
        self, embeddings: Tensor, labels: Tensor, tag: str, other: Tensor | None = None, share: Tensor | float = 1.0
    ) -> GlobalBatch:
        """Check this rank's input, agree with the others, and bring the batch together.

        Collectives: an exchange on the CPU, an all-gather of embeddings and labels over the shard group; with several
        copies of the head, an all-gather of labels over all ranks; with second labels, one of the shares.

        Args:
            embeddings: (b, D) floating; differentiable.
            labels: (b,) int64; or (b, P), -1 for none, P the same on every rank.
            tag: what the ranks are about to do; the same on all.
            other: (b,) int64, a second label for each row; None for none.
            share: () or (b,) in [0, 1], what the first label counts, if there are two.
        """
        comm = self.comm
        error = self._error(embeddings, labels, other, share)
        if error is None:
            if other is not None:
                embeddings, labels = torch.cat([embeddings, embeddings]), torch.cat([labels, other])
            self.deferred.watch(embeddings, without_gaps(labels), self.num_classes, self.check_finite)
        positives = labels.shape[1] if error is None and labels.dim() == 2 else 0
        sizes = self._agree_on_sizes(embeddings, tag, other is not None, positives, error)
        first = comm.rank - comm.shard_rank
        group_sizes = sizes[first : first + comm.shard_size]
        x, group_labels = gather_batch(embeddings, labels, group_sizes, comm.shard_group, float(comm.world_size))
        all_labels = all_gather_uneven(labels, sizes, comm.group) if comm.num_replicas > 1 else group_labels
        before, offset = sum(group_sizes[: comm.shard_rank]), sum(sizes[:first])
        weights = None
        if other is not None:
            compute = torch.float64 if x.dtype == torch.float64 else torch.float32
            lam = torch.as_tensor(share).to(other.device, compute).expand(other.shape)
            weights = all_gather_uneven(torch.cat([lam, 1.0 - lam]), sizes, comm.group)[offset : offset + x.shape[0]]
        own = slice(before, before + embeddings.shape[0])
        return GlobalBatch(x, group_labels, all_labels, sizes, own, offset, group_sizes, weights)

    def _error(
        self, embeddings: Tensor, labels: Tensor, other: Tensor | None, share: Tensor | float
    ) -> Exception | None:
        """What is wrong with this rank's input, or was with the last one's values; every rank is told of it."""
        error = self.deferred.pending() or batch_error(
            embeddings, labels, self.embedding_dim, self.num_classes, self.check_finite
        )
        if error is None and labels.dim() == 2:
            error = self.one_label(labels, other is not None)
        if error is None and other is not None:
            error = second_label_error(labels, other, share, self.num_classes)
        return error

    def _agree_on_sizes(
        self, embeddings: Tensor, tag: str, two_labels: bool, positives: int, error: Exception | None
    ) -> list[int]:
        """The batch size of every rank. One exchange on the CPU, which also tells of errors."""
        mine = [0, int(self.training), 0, int(two_labels), positives, 0, 0, self.options.code]
        if error is None:
            try:
                rows = self.look()
                mine = [embeddings.shape[0], int(self.training), embeddings.element_size(), *mine[3:5], *rows, mine[7]]
            except RuntimeError as failure:
                error = failure
        answers = self.comm.agreement.exchange(tag, mine, error)
        facts = (
            "head.training",
            "the embeddings' element size in bytes",
            "whether rows have a second label",
            "P of labels (b, P), 0 for (b,),",
        )
        for place, what in enumerate(facts, 1):
            if len({numbers[place] for numbers in answers}) > 1:
                raise ValueError(
                    f"{what} differs between ranks: {[numbers[place] for numbers in answers]} by rank; it must "
                    "be the same."
                )
        if len({numbers[7] for numbers in answers}) > 1:
            raise self.options.tell_apart(self.comm)
        RowWatch.judge([numbers[5:7] for numbers in answers], self.comm)
        sizes = [numbers[0] for numbers in answers]
        if sum(sizes) == 0:
            raise ValueError("The global batch is empty: embeddings has shape (0, D) on every rank.")
        return sizes
