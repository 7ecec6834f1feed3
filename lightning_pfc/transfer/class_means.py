"""Centers from pictures: the mean direction of the embeddings of each class, in one pass over the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_pfc.distributed import Comm
from lightning_pfc.distributed.collectives import all_gather_uneven, all_reduce
from lightning_pfc.heads.partial_fc import PartialFC

_LEAST = 1e-6
"""The shortest sum of unit vectors that still has a direction."""


class Filled(NamedTuple):
    """What has become of the rows of a head, over all ranks.

    Attributes:
        filled: rows with a mean now.
        known: rows that were to be left as they are.
        empty: rows of no picture, which have the center that they had.
        first_empty: the first of those; -1 for none.
    """

    filled: int
    known: int
    empty: int
    first_empty: int


class ClassSums:
    """Sums of unit embeddings by class: each rank adds up what it sees, and keeps the sums of the rows that it owns.

    Holds one more copy of this rank's centers, in float32, until it is gone.

    Args:
        head: has its rows already.
        comm: the ranks.
        first_class: the label of the head's first class.
    """

    def __init__(self, head: PartialFC, comm: Comm, first_class: int = 0) -> None:
        self.head, self.comm, self.first_class = head, comm, first_class
        shape, device = (head.shard.num_local, head.embedding_dim), head.weight.device
        self.sums = torch.zeros(shape, dtype=torch.float32, device=device)
        self.counts = torch.zeros(shape[0], dtype=torch.int64, device=device)

    def add(self, embeddings: Tensor, labels: Tensor) -> None:
        """Add a batch. Collective: one exchange of sizes on the CPU, two all-gathers of what the batch sums up to.

        Args:
            embeddings: (b, D) of this rank; b may differ from rank to rank, and be 0.
            labels: (b,) int64; those of other heads are passed over.

        Raises:
            FloatingPointError: on every rank, where an embedding is not finite.
        """
        own = (labels >= self.first_class) & (labels < self.first_class + self.head.num_classes)
        embeddings, labels = embeddings[own].detach().float(), labels[own] - self.first_class
        error = None
        if not bool(embeddings.isfinite().all()):
            error = FloatingPointError("init=class_means: an embedding holds NaN or infinity; look at the weights.")
        classes, place, counts = torch.unique(labels, return_inverse=True, return_counts=True)
        sums = embeddings.new_zeros((len(classes), self.head.embedding_dim))
        sums.index_add_(0, place, F.normalize(embeddings))
        sizes = [each[0] for each in self.comm.agreement.exchange("class means: add", [len(classes)], error)]
        if not any(sizes):
            return
        group, shard = self.comm.group, self.head.shard
        numbers = all_gather_uneven(torch.stack([classes, counts], 1), sizes, group)
        sums = all_gather_uneven(sums, sizes, group)
        mine = shard.owns(numbers[:, 0])
        rows = (numbers[mine, 0] - shard.start).to(self.sums.device)
        self.sums.index_add_(0, rows, sums[mine].to(self.sums.device))
        self.counts.index_add_(0, rows, numbers[mine, 1].to(self.sums.device))

    def fill(self, known: Tensor | None = None) -> Filled:
        """Give the head the means, of length 1. Of a class with several centers the first is the mean. Collective.

        Args:
            known: (c,) bool, rows of this rank that stay as they are; None for none.
        """
        device = self.sums.device
        kept = torch.zeros_like(self.counts, dtype=torch.bool) if known is None else known.to(device)
        seen = self.sums.norm(dim=1) > _LEAST
        rows = torch.nonzero(seen & ~kept).flatten()
        with torch.no_grad():
            weight = self.head.weight
            for part in torch.split(rows, 1 << 16):
                weight[part, : self.head.embedding_dim] = F.normalize(self.sums[part]).to(weight.dtype)
        self.head.initial_centers = self.head.initial_centers._replace(awaits_means=False)
        empty = torch.nonzero(~seen & ~kept).flatten()
        numbers = torch.tensor([len(rows), int(kept.sum()), len(empty)], device=self._wire)
        none = self.head.num_classes
        first = torch.tensor([-(int(empty[0]) + self.head.shard.start if len(empty) else none)], device=self._wire)
        group = self.comm.shard_group
        filled, told, left = all_reduce(numbers, group).tolist()
        lowest = -int(all_reduce(first, group, "max"))
        return Filled(filled, told, left, lowest if lowest < none else -1)

    @property
    def _wire(self) -> torch.device:
        return self.head.device


def fill_with_class_means(
    module: nn.Module,
    heads: Mapping[str, PartialFC],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    known: Mapping[str, Tensor] | None = None,
    first_classes: Mapping[str, int] | None = None,
    comm: Comm | None = None,
    embed: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Filled]:
    """Begin the centers of heads with the mean direction of each class's embeddings, in one pass.

    The module is in evaluation mode meanwhile, and in float32. Every rank calls it, with its own part of the pictures;
    the result does not depend on how they are shared, but for rounding. What goes wrong on one rank is raised on all.

    Args:
        module: maps images (b, C, H, W) to embeddings (b, D); on the device where it is to compute.
        heads: by name; they have their rows.
        batches: ``(images, labels)``; every picture once. Ranks may have different numbers of them.
        known: by the name of a head, (c,) bool: rows of this rank that stay as they are.
        first_classes: by the name of a head, the label of its first class; 0 where it is not said.
        comm: the ranks; None: those of the first head.
        embed: in place of ``module``.

    Returns:
        What has become of the rows, by head. A class without a picture keeps the center that it had.
    """
    talk = comm or next(iter(heads.values())).comm
    sums = {name: ClassSums(head, talk, (first_classes or {}).get(name, 0)) for name, head in heads.items()}
    device = next(iter(heads.values())).device
    with _evaluating(module):
        for embeddings, labels in _embedded(embed or module, batches, talk, heads, device):
            for each in sums.values():
                each.add(embeddings, labels)
    return {name: each.fill((known or {}).get(name)) for name, each in sums.items()}


def _embedded(
    embed: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    comm: Comm,
    heads: Mapping[str, PartialFC],
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches until no rank has any; a rank without one brings none of a size."""
    width = next(iter(heads.values())).embedding_dim
    left = iter(batches)
    while True:
        error: Exception | None = None
        found = torch.empty((0, width), device=device), torch.empty(0, dtype=torch.int64, device=device)
        more = False
        try:
            batch = next(left, None)
            if batch is not None:
                more, found = True, (embed(batch[0].to(device)), batch[1].to(device))
        except Exception as raised:  # whatever it is, the others wait
            error = raised
        if not any(each[0] for each in comm.agreement.exchange("class means: batch", [int(more)], error)):
            return
        yield found


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for child, mode in modes.items():
            child.training = mode
