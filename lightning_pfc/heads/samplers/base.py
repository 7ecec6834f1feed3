"""What a sampler is to the head: given the targets of a step, which other classes take part in it.

Capital letters are global, small ones this rank's part: B rows of the batch, C/c classes, K/k sampled classes, D width
of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_pfc.distributed.collectives import all_gather_rows, all_reduce
from lightning_pfc.distributed.comm import Comm
from lightning_pfc.distributed.shard import ClassShard
from lightning_pfc.heads.host_rows import take_rows
from lightning_pfc.heads.sampling import Sample, columns_of, distinct, is_among, sample_uniform
from lightning_pfc.named import Named


@dataclass(frozen=True, eq=False)
class Step:
    """What a sampler may look at in one training step.

    Attributes:
        targets: (B,) int64, the targets of all ranks, with repeats; the same on every rank.
        labels: (B',) int64, those of the ranks that share the classes: all of them, unless the head is replicated.
        budget: how many classes are to take part, targets included.
        shard: the classes of this rank.
        seed: of the head.
        step: () int64 tensor, training forwards before this one.
        state: what the sampler keeps: the tensors of :meth:`Sampler.initial_state`, and this rank's rows of those of
            :meth:`Sampler.row_state`. To be changed in place.
        dim: D.
        weight: (c, K D) this rank's centers, K of them a class, without gradient; they may be in the host's memory
            while all else is on a GPU.
        embeddings: gives (B, D) unit embeddings of all ranks, without gradient. With several copies of the head an
            all-gather, else free.
        comm: the ranks.
        cache: a dictionary of this rank that is kept from step to step, but not saved.
    """

    targets: Tensor
    labels: Tensor
    budget: int
    shard: ClassShard
    seed: int
    step: Tensor
    state: Mapping[str, Tensor]
    dim: int
    weight: Tensor
    embeddings: Callable[[], Tensor]
    comm: Comm
    cache: dict[str, Any]

    @property
    def num_classes(self) -> int:
        """C."""
        return self.shard.num_classes

    def centers(self, classes: Tensor) -> Tensor:
        """The centers (n, K D) of any classes (n,) int64, in float32; one all-reduce over the ranks of the head."""
        shard = self.shard
        owned = (classes >= shard.start) & (classes < shard.stop)
        rows = take_rows(self.weight, (classes - shard.start).clamp(0, shard.num_local - 1), classes.device).float()
        return all_reduce(torch.where(owned[:, None], rows, 0.0), self.comm.shard_group)

    def best(self, classes: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Of what every rank proposes, the ``count`` classes with the highest scores; the same on every rank.

        One all-gather of ``count`` pairs; with several copies of the head the first copy decides, one broadcast more.

        Args:
            classes: (n,) int64 global ids on this rank, each at most once over all ranks; n may differ by rank.
            scores: (n,) float64; equal scores go to the lower id.
            count: how many.

        Returns:
            Ids and scores, (m,) each with m <= count, best first.
        """
        packet = torch.full((count, 2), -1, dtype=torch.int64, device=classes.device)
        kept = min(count, classes.shape[0])
        scores, place = scores.double().topk(kept)
        packet[:kept, 0] = classes[place]
        packet[:kept, 1] = scores.view(torch.int64)
        packet = all_gather_rows(packet, self.comm.shard_size, self.comm.shard_group)
        if self.comm.replica_group is not None:
            dist.broadcast(packet, dist.get_global_rank(self.comm.replica_group, 0), group=self.comm.replica_group)
        packet = packet[packet[:, 0] >= 0]
        ids, order = packet[:, 0].sort()
        found = packet[:, 1][order].contiguous().view(torch.float64)
        place = found.argsort(descending=True, stable=True)[:count]
        return ids[place], found[place]


class Drawn(NamedTuple):
    """What a sampler chose.

    Attributes:
        classes: (n,) int64 global ids, the same on every rank; targets and repeats do no harm.
        log_inclusion: (n,) float, logarithm of the probability with which each was to be drawn, given all that is not
            left to chance; None where they were certain.
    """

    classes: Tensor
    log_inclusion: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Sampler(Named):
    """Base of all samplers: every target of the global batch takes part, and what :meth:`classes` says.

    A sampler of your own overrides :meth:`classes`. It is right on any number of ranks if its ids are the same on every
    rank: let them depend on what is the same everywhere (targets, seed, step), and go through :meth:`Step.best` with
    what is not (this rank's centers). Sizes then depend on values, so a step waits for the device once or twice;
    :class:`Uniform` alone does not.

    Args:
        correction: let a class that was drawn with probability p count 1/p times as a negative, so that the sum over
            the negatives, and with it the full softmax's normalizer, is right in expectation (sampled softmax: add
            ``-log p`` to the logit). Partial FC does without.

    Raises:
        ValueError: for a number out of range, or ``correction`` where the probabilities are not known.
    """

    correction: bool = False

    fills_up: ClassVar[bool] = False  # draw evenly from the remaining classes until the budget is full
    knows_inclusion: ClassVar[bool] = False  # ``correction`` is possible
    needs_counts: ClassVar[bool] = False  # row state "count": images of each class, given by ``head.set_class_counts``

    def __post_init__(self) -> None:
        if not isinstance(self.correction, bool):
            raise TypeError(f"{type(self).__name__}(correction={self.correction!r}): correction must be true or false.")
        if self.correction and not self.knows_inclusion:
            raise ValueError(
                f"{type(self).__name__}(correction=True): the probabilities of its classes are not known, so nothing "
                "can be made up for; leave it false."
            )

    # --- what the head asks -------------------------------------------------------------------------------------------

    def classes(self, step: Step) -> Tensor:
        """Global ids (n,) int64 of the classes that take part beside the targets, the same on every rank."""
        raise NotImplementedError(f"{type(self).__name__} must define classes(step).")

    def draw(self, step: Step) -> Drawn:
        """As :meth:`classes`, with probabilities."""
        return Drawn(self.classes(step))

    def sample(self, step: Step) -> Sample:
        """The classes of a step that live on this rank."""
        drawn = self.draw(step)
        if not self.fills_up:
            return self._sample_of(step, drawn)
        kept = distinct(torch.cat([step.targets, drawn.classes.to(step.targets)]))
        return sample_rest(step, kept, self.correction)

    def samples(self, rate: float) -> bool:
        """Whether anything is ever left out at this ``sample_rate``."""
        return rate < 1.0

    @property
    def weighs(self) -> bool:
        """Whether negatives may count other than once."""
        return self.correction

    def foresee(self, step: Step) -> Tensor | None:
        """Local rows (n,) that a step whose targets are not known yet will probably use; None if nobody knows."""
        return None

    def initial_state(self, num_classes: int, embedding_dim: int) -> dict[str, Tensor]:
        """Small tensors that are kept and saved, the same on every rank."""
        return {}

    def row_state(self, embedding_dim: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """What is kept and saved of every class, sharded as the centers are, zero at first: shape and type of a row."""
        return {"count": ((), torch.int32)} if self.needs_counts else {}

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _sample_of(self, step: Step, drawn: Drawn) -> Sample:
        shard = step.shard
        targets = distinct(step.targets)
        kept = distinct(torch.cat([targets, drawn.classes.to(targets)]))
        own = kept[(kept >= shard.start) & (kept < shard.stop)]
        weight = None
        if self.correction and drawn.log_inclusion is not None:
            ids, order = drawn.classes.sort()
            by_id = drawn.log_inclusion[order]
            place = torch.searchsorted(ids, own).clamp(max=max(0, ids.shape[0] - 1))
            weight = torch.where(is_among(own, targets), 0.0, -by_id[place]) if ids.shape[0] else None
        index = own - shard.start
        return Sample(index, columns_of(step.labels, index, shard), kept.new_full((), kept.shape[0]), None, weight)


def sample_rest(step: Step, kept: Tensor, correction: bool) -> Sample:
    """``kept`` (n,) classes, and others drawn evenly until the budget is full; see :func:`sample_uniform`."""
    found = sample_uniform(kept, step.labels, step.shard, step.budget, step.seed, step.step)
    if not correction or found.index is None:
        return found
    kept = kept.sort().values
    first = torch.ones_like(kept, dtype=torch.bool)
    first[1:] = kept[1:] != kept[:-1]
    certain = first.sum()
    drawn, among = (found.num_sampled - certain).double(), (step.num_classes - certain).double()
    weight = torch.where(is_among(found.index + step.shard.start, kept), 0.0, (among / drawn.clamp(min=1.0)).log())
    return Sample(found.index, found.columns, found.num_sampled, found.valid, weight)
