"""Uniform sampling in five kernels and one clearing of memory, the numbers of :func:`sample_uniform` bit for bit.

The classes drawn are kept as a bit a class (of all ranks: 12.5 MB for 10^8), so what was drawn is in order without a
sort, and a target is told from a negative without a search. Atomic operations are on integers only, where the order
does not matter.

    mark_targets      set the bits of the targets, count the distinct ones
    count_negatives   how many candidates of each block are no targets
    take_negatives    set the bits of those that the budget has room for and that live on this rank
    count_drawn       how many bits of each block of this rank's classes are set
    write_drawn       their numbers in ascending order, padding, and where among them each label's class stands

The first three are here, the last two in :mod:`lightning_pfc.kernels.gpu.drawn`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lightning_pfc.kernels.gpu.bits import bit_of, set_bits, sum_before
from lightning_pfc.kernels.gpu.permutation import permuted


@triton.jit
def mark_targets(bits, counts, labels, num_labels, num_classes, BLOCK: tl.constexpr):
    """Set the bits of all labels (-1 is none); ``counts[block]``: how many of the block's were not set before."""
    block = tl.program_id(0)
    places = block * BLOCK + tl.arange(0, BLOCK)
    classes = tl.load(labels + places, mask=places < num_labels, other=-1)
    live = (classes >= 0) & (classes < num_classes)
    before = set_bits(bits, classes, live)
    fresh = live & (((before >> (classes % 32).to(tl.int32)) & 1) == 0)
    tl.store(counts + block, tl.sum(fresh.to(tl.int32)))


@triton.jit
def candidate_tile(bits, first, length, num_classes, seed_low, seed_high, step, a, b, BLOCK: tl.constexpr):
    """Candidates (BLOCK,) from number ``first`` on in drawing order, and which are classes and no targets."""
    places = first + tl.arange(0, BLOCK)
    classes = permuted(tl.where(places < length, places, 0), seed_low, seed_high, step, a, b)
    live = (places < length) & (classes < num_classes)
    return classes, live & (bit_of(bits, classes, live) == 0)


@triton.jit
def count_negatives(bits, counts, step, seed_low, seed_high, num_classes, length, a, b, tiles, BLOCK: tl.constexpr):
    """``counts[block]``: how many candidates of a block are no targets."""
    block = tl.program_id(0)
    now = tl.load(step)
    total = tl.zeros((BLOCK,), tl.int32)
    for tile in range(tiles):
        first = (block * tiles + tile).to(tl.int64) * BLOCK
        _, negative = candidate_tile(bits, first, length, num_classes, seed_low, seed_high, now, a, b, BLOCK)
        total += negative.to(tl.int32)
    tl.store(counts + block, tl.sum(total))


@triton.jit
def take_negatives(
    bits,
    counts,
    num_target_blocks,
    target_counts,
    step,
    seed_low,
    seed_high,
    num_classes,
    start,
    stop,
    budget,
    length,
    a,
    b,
    tiles,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    TARGET_BLOCKS: tl.constexpr,
):
    """Set the bits of this rank's negatives: the first in drawing order, as many as the targets leave room for."""
    block = tl.program_id(0)
    now = tl.load(step)
    room = budget - sum_before(target_counts, num_target_blocks, num_target_blocks, TARGET_BLOCKS)
    taken = sum_before(counts, block, tl.num_programs(0), BLOCKS)
    for tile in range(tiles):
        first = (block * tiles + tile).to(tl.int64) * BLOCK
        # its own bit of a candidate is set by nobody else, so it still says whether it is a target
        classes, negative = candidate_tile(bits, first, length, num_classes, seed_low, seed_high, now, a, b, BLOCK)
        order = taken + tl.cumsum(negative.to(tl.int32), 0)
        taken += tl.sum(negative.to(tl.int32))
        set_bits(bits, classes, negative & (order <= room) & (classes >= start) & (classes < stop))
