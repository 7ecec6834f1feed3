"""What the labels of a batch decide, before its embeddings are known: the draw, and rows fetched from the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_pfc.distributed.collectives import all_gather_uneven
from lightning_pfc.distributed.comm import Comm
from lightning_pfc.heads.sampling.sampled_classes import SampledClasses

_REFUSED = -1


@dataclass(frozen=True, eq=False)
class Prepared:
    """The classes of a batch that has been announced.

    Attributes:
        key: what they depend on beside the labels; see :meth:`fits`.
        given: labels, and second ones or None, as they were given.
        versions: how often these had been written then.
        sampled: the classes.
    """

    key: tuple[Any, ...]
    given: tuple[Tensor, Tensor | None]
    versions: tuple[int, ...]
    sampled: SampledClasses

    def fits(self, key: tuple[Any, ...], labels: Tensor, other: Tensor | None) -> bool:
        """Whether a forward with these labels, in the same step, draws these classes; no value is read."""
        same = self.given[0] is labels and self.given[1] is other and self.key[0] is key[0]
        return same and self.key[1:] == key[1:] and self.versions == versions_of(labels, other)


def versions_of(*tensors: Tensor | None) -> tuple[int, ...]:
    """How often each has been written in place."""
    return tuple(0 if x is None or x.is_inference() else x._version for x in tensors)


@torch.no_grad()
def announced_labels(
    labels: Tensor, other: Tensor | None, num_classes: int, comm: Comm
) -> tuple[Tensor, Tensor] | None:
    """Labels of all ranks and of the shard group, as the forward that follows will gather them.

    Collectives: one exchange on the CPU, one all-gather of labels.

    Args:
        labels: (b,) or (b, P) int64 of this rank.
        other: (b,), the second labels; None for none.
        num_classes: C.
        comm: the ranks.

    Returns:
        (B,) or (B, P) of all ranks, the same of the shard group; None, on every rank, where the forward would refuse
        what a rank has: it says why.
    """
    own = _own(labels, other, num_classes)
    mine = [_REFUSED, 0] if own is None else [own.shape[0], own.shape[1] if own.dim() == 2 else 0]
    said = [numbers[:2] for numbers in comm.agreement.exchange("PartialFC.prepare", mine)]
    sizes = [size for size, _ in said]
    if own is None or _REFUSED in sizes or len({positives for _, positives in said}) > 1 or sum(sizes) == 0:
        return None
    every = all_gather_uneven(own, sizes, comm.group) if comm.group is not None else own
    first = comm.rank - comm.shard_rank
    start = sum(sizes[:first])
    return every, every[start : start + sum(sizes[first : first + comm.shard_size])]


def _own(labels: Tensor, other: Tensor | None, num_classes: int) -> Tensor | None:
    """This rank's labels, first and second; None where something is wrong with them."""
    given = [labels] if other is None else [labels, other]
    if not all(isinstance(x, Tensor) and x.dtype == torch.int64 and x.dim() in (1, 2) for x in given):
        return None
    if other is not None and (other.dim() != 1 or other.shape != labels.shape or other.device != labels.device):
        return None
    own = torch.cat(given)
    bad = own.device.type == "cpu" and bool(((own < -1) | (own >= num_classes)).any())
    return None if bad else own
