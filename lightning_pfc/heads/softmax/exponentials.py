"""Exponentials of the scores of a chunk of classes, and their sums.

Where a CPU has bfloat16 products, product, exponential and rounding are one pass: oneDNN can follow a product by a
sigmoid before the result is rounded, and sigmoid(y) is exp(y) but for exp(y) itself, relatively, where y is well below
0. With a reference that keeps every exponent below -8 that is 3e-4 at a cosine of 1, less than a tenth of bfloat16's
own rounding, and nothing anywhere else. A score far below the reference becomes 0; :func:`too_small` tells when that
would matter.
"""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Any

import torch
from torch import Tensor

from lightning_pfc.heads.softmax.precision import Arithmetic
from lightning_pfc.heads.softmax.targets_apart import TargetsApart
from lightning_pfc.kernels.exponentials import exponentials_
from lightning_pfc.kernels.library import takes_kernels
from lightning_pfc.matmul.in_precision import has_fast_bfloat16, matmul

LARGEST_SCALE = 73.0
"""exp(z) of every logit in [-scale, scale] is a normal float32, and a sum of 10^9 of them finite, up to this scale."""

_LARGEST_EXPONENT = 64.0
_FUSED_MARGIN = 8.0
_SMALLEST_FUSED = -78.0  # logarithm of a sum; terms below exp(-87.3) are flushed
_FLUSHED_SHARE = 2.0**-12
_linear_pointwise: Any = getattr(getattr(torch.ops, "mkldnn", None), "_linear_pointwise", None)


def reference_of(scale: float, *, fused: bool) -> float:
    """What is taken off every logit before its exponential."""
    return scale + _FUSED_MARGIN if fused else max(0.0, scale - _LARGEST_EXPONENT)


def can_fuse(x: Tensor, arithmetic: Arithmetic) -> bool:
    """Whether product and exponential are one pass for these embeddings."""
    on_cpu = x.device.type == "cpu" and type(x) is Tensor and not takes_kernels(x)
    return on_cpu and arithmetic.precision == "bfloat16" and _FUSED_WORKS


def too_small(sums: Tensor, num_rows: int) -> bool:
    """Whether sums (B,) of fused exponentials of so many classes lack terms that matter: some row is far from all."""
    flushed = num_rows * 2.0**-126 / _FLUSHED_SHARE
    return bool((sums < max(flushed, math.exp(_SMALLEST_FUSED))).any())


def chunk_exponentials(
    queries: Tensor,
    units: Tensor,
    arithmetic: Arithmetic,
    scale: float,
    offsets: Tensor | None,
    targets: TargetsApart,
    chunk: int,
    out: Tensor,
    room: Tensor | None = None,
    *,
    fused: bool = False,
    kernels: Container[str] | None = None,
) -> Tensor:
    """Write ``exp(logit - reference)`` of a chunk into ``out``, 0 at targets, and add up what was written.

    Args:
        queries: (B, D) embeddings of length ``scale``, as operands of the product.
        units: (n, D) unit rows of the chunk, as operands.
        arithmetic: of the product.
        scale: of the logits.
        offsets: (n,) added to every row's logits, -inf leaves a class out; None for nothing.
        targets: of the batch.
        chunk: number of the chunk.
        out: (B, n) in the dtype that exponentials are kept in.
        room: (B, n) in the dtype of ``queries`` before rounding, for what is computed on the way; None for new storage.
        fused: whether this is one pass; see :func:`can_fuse`.
        kernels: which operations run as kernels on a GPU.

    Returns:
        (B,) sums of the rounded numbers, in float32 (float64 for float64 exponentials).
    """
    reference = reference_of(scale, fused=fused)
    if fused:
        bias = units.new_full((units.shape[0],), -reference, dtype=torch.float32)
        out.copy_(_sigmoid_of_product(queries, units, bias if offsets is None else bias.add_(offsets)))
    elif takes_kernels(queries):
        scores = matmul(queries, units.t(), arithmetic.precision)
        return exponentials_(
            scores, out, 1.0, reference, targets.columns, offsets, targets.first(chunk), kernels=kernels
        )
    else:
        direct = out.dtype == queries.dtype and arithmetic.precision in ("float32", "tf32")
        scores = matmul(queries, units.t(), arithmetic.precision, out=out if direct else room)
        if offsets is not None:
            scores.add_(offsets)
        if reference:
            scores.sub_(reference)
        scores.exp_()
        if scores is not out:
            out.copy_(scores)
    targets.remove_(chunk, out)
    # of bfloat16: torch.sum with a dtype is seven times slower than a copy and a sum
    if out.dtype == torch.bfloat16:
        return (out.float() if room is None else room.copy_(out)).sum(1)
    return out.sum(1)


def _sigmoid_of_product(a: Tensor, b: Tensor, bias: Tensor) -> Tensor:
    """sigmoid(a b^T + bias) in bfloat16, of which only the result is rounded."""
    product: Tensor = _linear_pointwise(a, b, bias, "sigmoid", [], "")
    return product


def _fused_works() -> bool:
    """Whether this PyTorch and CPU have it, and it gives what it should."""
    if _linear_pointwise is None or not has_fast_bfloat16():
        return False
    row = torch.linspace(-1.0, 1.0, 48).bfloat16()
    rows = torch.stack([row, -row, row.flip(0).abs()])
    bias = torch.tensor([-30.0, -62.0625, -torch.inf])
    try:
        found = _sigmoid_of_product(rows, rows, bias).double()
    except (RuntimeError, TypeError):
        return False
    expected = (rows.double() @ rows.double().t() + bias.double()).exp()
    return bool(((found - expected).abs() <= 2.0**-8 * expected).all())


_FUSED_WORKS = _fused_works()  # looked at now: later might be within somebody's tensor mode
