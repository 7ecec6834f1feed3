"""The uniform sample of a step, in at most six launches on a GPU."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_pfc.distributed.shard import ClassShard
from lightning_pfc.heads.sampling.sampled_classes import SampledClasses
from lightning_pfc.heads.sampling.uniform_draw import capacity, sample_uniform
from lightning_pfc.kernels.choice import planted
from lightning_pfc.kernels.library import operation
from lightning_pfc.keyed_random.permutation import Permutation

LARGEST_DOMAIN = 1 << 31
"""Classes up to which the kernels count in 32 bits; more take the path of plain torch."""
_LOW_BITS = 0xFFFFFFFF


def _twin(
    all_labels: Tensor,
    labels: Tensor,
    step: Tensor,
    num_classes: int,
    rank: int,
    ranks: int,
    budget: int,
    seed: Sequence[int],
    *sizes: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    shard = ClassShard(num_classes, rank, ranks)
    drawn = sample_uniform(all_labels, labels, shard, budget, seed[0] | seed[1] << 32, step, static_shapes=True)
    assert drawn.index is not None
    assert drawn.valid is not None
    return drawn.index, drawn.valid, drawn.columns, drawn.num_sampled, drawn.valid.sum()


def _fake(
    all_labels: Tensor,
    labels: Tensor,
    step: Tensor,
    num_classes: int,
    rank: int,
    ranks: int,
    budget: int,
    seed: Sequence[int],
    sides: Sequence[int],
    length: int,
    size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    index = labels.new_empty((size,))
    valid = index.new_empty((size,), dtype=torch.bool)
    columns = torch.empty_like(labels, memory_format=torch.contiguous_format)
    return index, valid, columns, labels.new_empty(()), labels.new_empty(())


_operation = operation(
    "draw_uniform(Tensor all_labels, Tensor labels, Tensor step, int num_classes, int rank, int ranks, int budget,"
    " int[] seed, int[] sides, int length, int size) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _twin,
    _fake,
    "lightning_pfc.kernels.gpu.drawing:draw_uniform",
    launches=6,
)


def draw_uniform(
    all_labels: Tensor,
    labels: Tensor,
    shard: ClassShard,
    budget: int,
    seed: int,
    step: Tensor,
    kernels: Container[str] | None = None,
) -> SampledClasses:
    """The sample of :func:`lightning_pfc.heads.sampling.sample_uniform` with static shapes, bit for bit.

    Time and memory are those of the classes drawn, and one bit more for each class of all ranks.

    The arguments are those; the budget is below the number of classes, and there are at most 2^31.
    """
    arguments = _arguments(all_labels, labels, shard, budget, seed, step)
    index, valid, columns, num_sampled, num_valid = _operation(*arguments, kernels=kernels)
    return SampledClasses(index, columns, num_sampled, valid, num_valid=num_valid)


def draw_sample(
    all_labels: Tensor, labels: Tensor, shard: ClassShard, budget: int, seed: int, step: Tensor
) -> SampledClasses:
    """The sample of a step: by :func:`draw_uniform` where that is possible and the device is no CPU."""
    fits = 0 < budget < shard.num_classes <= LARGEST_DOMAIN and all_labels.numel() > 0
    if fits and labels.device.type != "cpu":
        return draw_uniform(all_labels, labels, shard, budget, seed, step)
    return sample_uniform(all_labels, labels, shard, budget, seed, step)


def _arguments(
    all_labels: Tensor, labels: Tensor, shard: ClassShard, budget: int, seed: int, step: Tensor
) -> tuple[Any, ...]:
    """What the operation takes: with the sizes that the kernels need and the twin finds itself."""
    permutation = Permutation(shard.num_classes, step.new_empty(0))
    spare = permutation.domain - shard.num_classes
    length = min(permutation.domain, budget + spare) if budget else 0
    size = capacity(all_labels.numel(), shard, budget)
    halves = [seed & _LOW_BITS, (seed >> 32) & _LOW_BITS]
    split = (shard.num_classes, shard.rank, shard.world_size)
    return all_labels, labels, step, *split, budget, halves, permutation.sides, length, size


@planted("draw_uniform")
def _planted(device: torch.device) -> list[tuple[Any, ...]]:
    labels = torch.tensor([5, 17, 5, 999, 0, 333], device=device)
    step = torch.tensor(3, device=device)
    shards = [ClassShard(1000, rank, 2) for rank in range(2)]
    return [_arguments(labels, labels[:4], shard, 60, 0x123456789, step) for shard in shards]
