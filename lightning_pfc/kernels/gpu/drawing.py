"""Starts the kernels that draw a sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_pfc.distributed.shard import ClassShard
from lightning_pfc.kernels.gpu import draw, drawn
from lightning_pfc.kernels.gpu.calls import blocks
from lightning_pfc.kernels.launching import launch, launched
from lightning_pfc.kernels.tiles import power_of_two

CANDIDATES = 256  # of a tile
WORDS = 32  # of bits, in a tile
LABELS = 8  # whose place a program finds
MOST_BLOCKS = 1024  # counts that a program adds up


class _Split(NamedTuple):
    """Some work in blocks, one a program, each of a few tiles: few enough blocks that a program can add up them all."""

    tiles: int
    blocks: int

    @classmethod
    def of(cls, number: int, tile: int) -> _Split:
        tiles = max(1, blocks(number, tile * MOST_BLOCKS))
        return cls(tiles, blocks(number, tile * tiles))


def draw_uniform(
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
    """See :func:`lightning_pfc.heads.sampling.draw_kernel.draw_uniform`."""
    all_labels, labels = all_labels.contiguous(), labels.contiguous()  # a column of a table stays one on a single GPU
    shard = ClassShard(num_classes, rank, ranks)
    own = (shard.start, shard.stop)
    num_words = blocks(shard.stop, 32) - shard.start // 32
    target_block = max(128, power_of_two(blocks(all_labels.numel(), MOST_BLOCKS)))
    targets = max(1, blocks(all_labels.numel(), target_block))
    candidates, words = _Split.of(length, CANDIDATES), _Split.of(num_words, WORDS)
    launched("zeros")
    bits = torch.zeros((blocks(num_classes, 32),), dtype=torch.int32, device=labels.device)
    counts = bits.new_empty((targets + candidates.blocks + words.blocks,))
    target_counts, counts = counts[:targets], counts[targets:]
    negative_counts, drawn_counts = counts[: candidates.blocks], counts[candidates.blocks :]
    launch(
        draw.mark_targets, (targets,), bits, target_counts, all_labels, all_labels.numel(), num_classes,
        BLOCK=target_block, num_warps=4,
    )  # fmt: skip
    launch(
        draw.count_negatives, (candidates.blocks,), bits, negative_counts, step, *seed, num_classes, length, *sides,
        candidates.tiles, BLOCK=CANDIDATES, num_warps=4,
    )  # fmt: skip
    launch(
        draw.take_negatives, (candidates.blocks,), bits, negative_counts, targets, target_counts, step, *seed,
        num_classes, *own, budget, length, *sides, candidates.tiles, BLOCK=CANDIDATES,
        BLOCKS=power_of_two(max(1, candidates.blocks)), TARGET_BLOCKS=power_of_two(targets), num_warps=4,
    )  # fmt: skip
    launch(
        drawn.count_drawn, (words.blocks,), bits, drawn_counts, *own, num_words, words.tiles, WORDS=WORDS, num_warps=4,
    )  # fmt: skip
    index, columns = labels.new_empty((size,)), torch.empty_like(labels)
    valid, num_sampled = labels.new_empty((size,), dtype=torch.bool), labels.new_empty(())
    num_valid = torch.empty_like(num_sampled)
    programs = max(words.blocks, blocks(labels.numel(), LABELS))
    launch(
        drawn.write_drawn, (programs,), bits, drawn_counts, target_counts, targets, labels, index, valid, columns,
        num_sampled, num_valid, labels.numel(), *own, budget, num_words, words.blocks, size, words.tiles,
        blocks(blocks(size, WORDS * 32), programs), WORDS=WORDS, BLOCKS=power_of_two(words.blocks),
        TARGET_BLOCKS=power_of_two(targets), LABELS=LABELS, num_warps=4,
    )  # fmt: skip
    return index, valid, columns, num_sampled, num_valid
