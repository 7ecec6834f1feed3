"""The drawn classes from their bits: how many, which, and where among them each label's class stands."""

from __future__ import annotations

import triton
import triton.language as tl

from lightning_pfc.kernels.gpu.bits import own_words, population, sum_before


@triton.jit
def count_drawn(bits, counts, start, stop, num_words, tiles, WORDS: tl.constexpr):
    """``counts[block]``: how many of this rank's classes in a block of words are drawn."""
    block = tl.program_id(0)
    total = tl.zeros((WORDS,), tl.int32)
    for tile in range(tiles):
        offset = (block * tiles + tile) * WORDS + tl.arange(0, WORDS)
        live = offset < num_words
        total += population(own_words(bits, (start // 32) + offset, start, stop, live))
    tl.store(counts + block, tl.sum(total))


@triton.jit
def write_block(
    bits, counts, index, start, stop, num_words, num_blocks, size, tiles, WORDS: tl.constexpr, BLOCKS: tl.constexpr
):
    """Numbers of the drawn classes of this program's block, at their places."""
    block = tl.program_id(0)
    base = sum_before(counts, block, num_blocks, BLOCKS)
    for tile in range(tiles):
        words = (block * tiles + tile) * WORDS + tl.arange(0, WORDS)
        live = (words < num_words) & (block < num_blocks)
        found = own_words(bits, (start // 32) + words, start, stop, live)
        bit = tl.arange(0, 32)
        drawn = ((found[:, None] >> bit[None, :].to(tl.uint32)) & 1).to(tl.int32)
        flat = tl.reshape(drawn, (WORDS * 32,))
        place = base + tl.cumsum(flat, 0) - 1
        first = ((start // 32) + (block * tiles + tile) * WORDS).to(tl.int64) * 32 - start
        rows = first + tl.arange(0, WORDS * 32)
        tl.store(index + place, rows, mask=(flat != 0) & (place < size))
        base += tl.sum(flat)


@triton.jit
def last_drawn(bits, counts, start, stop, num_words, num_blocks, tiles, WORDS: tl.constexpr, BLOCKS: tl.constexpr):
    """The largest of this rank's drawn rows, 0 if there is none."""
    blocks = tl.arange(0, BLOCKS)
    held = tl.load(counts + blocks, mask=blocks < num_blocks, other=0)
    block = tl.max(tl.where(held > 0, blocks, 0), 0)
    largest = tl.zeros((), tl.int64)
    for tile in range(tiles):
        words = (block * tiles + tile) * WORDS + tl.arange(0, WORDS)
        found = own_words(bits, (start // 32) + words, start, stop, words < num_words)
        bit = tl.arange(0, 32)
        drawn = ((found[:, None] >> bit[None, :].to(tl.uint32)) & 1) != 0
        rows = ((start // 32) + words).to(tl.int64)[:, None] * 32 + bit[None, :] - start
        largest = tl.maximum(largest, tl.max(tl.max(tl.where(drawn, rows, 0), 1), 0))
    return largest


@triton.jit
def write_columns(
    bits,
    counts,
    labels,
    columns,
    num_labels,
    start,
    stop,
    num_words,
    num_blocks,
    tiles,
    LABELS: tl.constexpr,
    BLOCKS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """The place of each label's class among the drawn ones, -1 where another rank owns it or there is none."""
    places = tl.program_id(0) * LABELS + tl.arange(0, LABELS)
    classes = tl.load(labels + places, mask=places < num_labels, other=-1)
    owned = (classes >= start) & (classes < stop)
    word_of = tl.where(owned, classes // 32 - start // 32, 0)
    block = word_of // (tiles * WORDS)
    blocks = tl.arange(0, BLOCKS)
    held = tl.load(counts + blocks, mask=blocks < num_blocks, other=0)
    rank = tl.sum(tl.where(blocks[None, :] < block[:, None], held[None, :], 0), 1)
    for tile in range(tiles):
        words = (block * tiles + tile)[:, None] * WORDS + tl.arange(0, WORDS)[None, :]
        before = owned[:, None] & (words < word_of[:, None]) & (words < num_words)
        rank += tl.sum(population(own_words(bits, (start // 32) + words, start, stop, before)), 1)
    own = own_words(bits, (start // 32) + word_of, start, stop, owned)
    below = (tl.full(own.shape, 1, tl.uint32) << (classes % 32).to(tl.uint32)) - 1
    rank += population(own & below)
    tl.store(columns + places, tl.where(owned, rank, -1).to(tl.int64), mask=places < num_labels)


@triton.jit
def write_drawn(
    bits,
    counts,
    target_counts,
    num_target_blocks,
    labels,
    index,
    valid,
    columns,
    num_sampled,
    num_valid,
    num_labels,
    start,
    stop,
    budget,
    num_words,
    num_blocks,
    size,
    tiles,
    padding_tiles,
    WORDS: tl.constexpr,
    BLOCKS: tl.constexpr,
    TARGET_BLOCKS: tl.constexpr,
    LABELS: tl.constexpr,
):
    """The sample: ``index``, ``valid``, ``columns`` and both counts; a program does its part of each."""
    program = tl.program_id(0)
    write_block(bits, counts, index, start, stop, num_words, num_blocks, size, tiles, WORDS, BLOCKS)
    total = sum_before(counts, num_blocks, num_blocks, BLOCKS)
    for tile in range(padding_tiles):
        places = (program * padding_tiles + tile).to(tl.int64) * (WORDS * 32) + tl.arange(0, WORDS * 32)
        tl.store(valid + places, places < total, mask=places < size)
        padding = (places >= total) & (places < size)
        if tl.max(padding.to(tl.int32), 0) > 0:
            largest = last_drawn(bits, counts, start, stop, num_words, num_blocks, tiles, WORDS, BLOCKS)
            tl.store(index + places, tl.zeros((WORDS * 32,), tl.int64) + largest, mask=padding)
    write_columns(
        bits, counts, labels, columns, num_labels, start, stop, num_words, num_blocks, tiles, LABELS, BLOCKS, WORDS
    )
    if program == 0:
        targets = sum_before(target_counts, num_target_blocks, num_target_blocks, TARGET_BLOCKS)
        tl.store(num_sampled, tl.maximum(targets, budget))
        tl.store(num_valid, tl.minimum(total, size))
