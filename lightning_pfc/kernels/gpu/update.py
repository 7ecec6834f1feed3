"""One optimizer step of sampled rows: each row and its state is read once and written once.

The gradient may be that of the unit row; then the radial part is taken out here, where the center is at hand. What is
common to the rules is in :func:`sampled_rows` and :func:`row_gradient`; a rule is one kernel of a few lines more.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lightning_pfc.kernels.gpu.hashing import noise_key
from lightning_pfc.kernels.gpu.row_formats import read_state, write_floats, write_state
from lightning_pfc.kernels.gpu.rows import local_rows, projected


@triton.jit
def sampled_rows(index, count, num_rows, HAS_INDEX: tl.constexpr, HAS_COUNT: tl.constexpr, ROWS: tl.constexpr):
    """Entries of the gradient, which of them are real, and the rows they belong to."""
    entries = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = entries < num_rows
    if HAS_COUNT:  # what follows is padding
        live = live & (entries < tl.load(count))
    return entries, live, local_rows(index, entries, live, HAS_INDEX)


@triton.jit
def row_gradient(grad, entries, weight, inside, columns, width, eps, PROJECT: tl.constexpr):
    """The gradient of the centers; with ``PROJECT`` from that of the unit rows."""
    values = tl.load(grad + entries[:, None] * width + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    if PROJECT:
        values = projected(values, weight, eps)
    return values


@triton.jit
def sgd_rows(
    weight,
    momentum,
    scales,
    grad,
    index,
    count,
    options,
    step,
    first_row,
    seed_low,
    seed_high,
    num_rows,
    width,
    eps,
    HAS_INDEX: tl.constexpr,
    HAS_COUNT: tl.constexpr,
    PROJECT: tl.constexpr,
    HAS_MOMENTUM: tl.constexpr,
    NESTEROV: tl.constexpr,
    LEVELS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """SGD. ``options``: lr, momentum, weight decay."""
    entries, live, rows = sampled_rows(index, count, num_rows, HAS_INDEX, HAS_COUNT, ROWS)
    columns = tl.arange(0, WIDTH)
    inside = live[:, None] & (columns < width)[None, :]
    places = rows[:, None] * width + columns[None, :]
    lr, decay = tl.load(options).to(tl.float32), tl.load(options + 2).to(tl.float32)
    center = tl.load(weight + places, mask=inside, other=0.0).to(tl.float32)
    move = row_gradient(grad, entries, center, inside, columns, width, eps, PROJECT) + decay * center
    key, classes = noise_key(seed_low, seed_high, tl.load(step)), rows + first_row
    if HAS_MOMENTUM:
        beta = tl.load(options + 1).to(tl.float32)
        velocity = beta * read_state(momentum, scales, rows, places, inside, live, LEVELS) + move
        move = move + beta * velocity if NESTEROV else velocity
        write_state(momentum, scales, rows, places, velocity, inside, live, key, classes, columns, width, 1, LEVELS)
    write_floats(weight, places, center - lr * move, inside, key, classes, columns, width, 0)


@triton.jit
def adamw_rows(
    weight,
    mean,
    mean_scales,
    square,
    square_scales,
    last,
    grad,
    index,
    count,
    options,
    step,
    first_row,
    seed_low,
    seed_high,
    num_rows,
    width,
    eps,
    HAS_INDEX: tl.constexpr,
    HAS_COUNT: tl.constexpr,
    PROJECT: tl.constexpr,
    DECAY: tl.constexpr,
    LEVELS: tl.constexpr,
    SQUARE_LEVELS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """AdamW. ``options``: lr, weight decay, eps, beta1, beta2; powers of the betas are taken in float64."""
    entries, live, rows = sampled_rows(index, count, num_rows, HAS_INDEX, HAS_COUNT, ROWS)
    columns = tl.arange(0, WIDTH)
    inside = live[:, None] & (columns < width)[None, :]
    places = rows[:, None] * width + columns[None, :]
    lr, decay, floor = tl.load(options), tl.load(options + 1), tl.load(options + 2).to(tl.float32)
    beta1, beta2 = tl.load(options + 3), tl.load(options + 4)
    now = tl.load(step)
    log1, log2 = tl.log(beta1), tl.log(beta2)
    correction1 = 1.0 - tl.exp(log1 * now.to(tl.float64))
    correction2 = tl.sqrt(1.0 - tl.exp(log2 * now.to(tl.float64))).to(tl.float32)
    center = tl.load(weight + places, mask=inside, other=0.0).to(tl.float32)
    slope = row_gradient(grad, entries, center, inside, columns, width, eps, PROJECT)
    first = read_state(mean, mean_scales, rows, places, inside, live, LEVELS)
    second = read_state(square, square_scales, rows, places, inside, live, SQUARE_LEVELS)
    if DECAY:
        before = tl.load(last + rows, mask=live, other=0.0)
        missed = tl.where(before > 0, now.to(tl.float32) - 1.0 - before, 0.0)
        # of a beta of 0 the logarithm is -inf, and 0 times that would be a NaN
        first *= tl.where(missed > 0, tl.exp(missed * log1.to(tl.float32)), 1.0)[:, None]
        second *= tl.where(missed > 0, tl.exp(missed * log2.to(tl.float32)), 1.0)[:, None]
        tl.store(last + rows, tl.zeros((ROWS,), tl.float32) + now.to(tl.float32), mask=live)
    first += (1.0 - beta1).to(tl.float32) * (slope - first)
    second = beta2.to(tl.float32) * second + (1.0 - beta2).to(tl.float32) * slope * slope
    center *= (1.0 - lr * decay).to(tl.float32)
    center -= (lr / correction1).to(tl.float32) * tl.div_rn(first, tl.div_rn(tl.sqrt_rn(second), correction2) + floor)
    key, classes = noise_key(seed_low, seed_high, now), rows + first_row
    write_floats(weight, places, center, inside, key, classes, columns, width, 0)
    write_state(mean, mean_scales, rows, places, first, inside, live, key, classes, columns, width, 1, LEVELS)
    write_state(
        square, square_scales, rows, places, second, inside, live, key, classes, columns, width, 2, SQUARE_LEVELS
    )


@triton.jit
def adagrad_rows(
    weight,
    total,
    grad,
    index,
    count,
    options,
    step,
    first_row,
    seed_low,
    seed_high,
    num_rows,
    width,
    eps,
    HAS_INDEX: tl.constexpr,
    HAS_COUNT: tl.constexpr,
    PROJECT: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Adagrad with one number a row. ``options``: lr, weight decay, eps."""
    entries, live, rows = sampled_rows(index, count, num_rows, HAS_INDEX, HAS_COUNT, ROWS)
    columns = tl.arange(0, WIDTH)
    inside = live[:, None] & (columns < width)[None, :]
    places = rows[:, None] * width + columns[None, :]
    lr, decay = tl.load(options).to(tl.float32), tl.load(options + 1).to(tl.float32)
    floor = tl.load(options + 2).to(tl.float32)
    center = tl.load(weight + places, mask=inside, other=0.0).to(tl.float32)
    slope = row_gradient(grad, entries, center, inside, columns, width, eps, PROJECT) + decay * center
    sums = tl.load(total + rows, mask=live, other=0.0) + tl.div_rn(tl.sum(slope * slope, 1), width * 1.0)
    tl.store(total + rows, sums, mask=live)
    center -= lr * tl.div_rn(slope, (tl.sqrt_rn(sums) + floor)[:, None])
    key = noise_key(seed_low, seed_high, tl.load(step))
    write_floats(weight, places, center, inside, key, rows + first_row, columns, width, 0)
