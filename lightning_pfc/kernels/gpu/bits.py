"""Sets of classes as a bit a class, and sums over blocks of them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def bit_of(bits, classes, live):
    """Whether the bits of some classes are set."""
    words = tl.load(bits + classes // 32, mask=live, other=0)
    return ((words >> (classes % 32).to(tl.int32)) & 1) != 0


@triton.jit
def set_bits(bits, classes, live):
    """Set the bits of some classes; gives what the words were before."""
    place = tl.where(live, classes, 0)
    return tl.atomic_or(bits + place // 32, (1 << (place % 32).to(tl.int32)).to(tl.int32), mask=live, sem="relaxed")


@triton.jit
def population(x):
    """How many bits of uint32 words are set, int32."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def own_words(bits, words, start, stop, live):
    """Words of bits, uint32, without those of classes that are not this rank's."""
    first = words.to(tl.int64) * 32
    found = tl.load(bits + words, mask=live, other=0).to(tl.uint32, bitcast=True)
    below = tl.minimum(tl.maximum(start - first, 0), 32)
    above = tl.minimum(tl.maximum(stop - first, 0), 32)
    ones = tl.full(words.shape, 0xFFFFFFFF, tl.uint32)
    low = tl.where(below < 32, ones << tl.minimum(below, 31).to(tl.uint32), 0)
    high = tl.where(above > 0, ones >> tl.minimum(32 - above, 31).to(tl.uint32), 0)
    return found & low & high


@triton.jit
def sum_before(counts, block, num_blocks, BLOCKS: tl.constexpr):
    """Sum of the counts of the blocks before one, int64."""
    blocks = tl.arange(0, BLOCKS)
    held = tl.load(counts + blocks, mask=(blocks < block) & (blocks < num_blocks), other=0)
    return tl.sum(held.to(tl.int64))
