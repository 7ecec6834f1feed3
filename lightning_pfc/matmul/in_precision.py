"""Matrix products in a chosen precision, with sums in float32.

A GPU multiplies rounded numbers and adds up in float32. On a CPU the operands are rounded the same way and multiplied
in float32, so that an error measured here is that of a GPU; where a CPU has bfloat16 products of its own they are taken
for the gradients, whose result they round once more (the two libraries that PyTorch carries give no float32 result at
bfloat16's speed).

``float16x3`` is float32's accuracy from float16 products: with ``a = high + low``, each a float16, ``a b`` is ``high
high + high low + low high`` but for 2^-22, one product of three times the inner size. The operands are scaled by powers
of two first, so that the low parts, 2^-11 of the high ones, are not below what float16 can hold.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_pfc.matmul.float32 import cpu_products, cuda_products
from lightning_pfc.matmul.no_autocast import no_autocast

Precision = Literal["float32", "tf32", "bfloat16", "float16", "float16x3"]
"""A precision that products can be computed in."""

HALF: dict[Precision, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""Dtype of the operands in each half precision."""
_TF32_DROPPED_BITS = 13
_SPLIT_EXPONENT = 11  # operands of a split product are scaled so that their largest number is just below 2^11


@contextmanager
def products_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Lets the products inside be computed in ``precision``, whatever the user's own setting for other products is.

    On a GPU it switches TF32 on or off for float32 products, on a CPU it takes the faster library; autocast around it
    changes nothing. What was set is in force again afterwards.
    """
    with no_autocast(device), cuda_products(tf32=precision == "tf32"), cpu_products():
        yield


def round_operand(x: Tensor, precision: Precision, out: Tensor | None = None) -> Tensor:
    """``x`` as an operand of :func:`matmul`: in half precision, or of ten bits; itself where nothing is to be done.

    Args:
        x: floating.
        precision: of the product. ``float16x3`` splits inside the product, so nothing is rounded here.
        out: of the shape of ``x`` in the dtype of the operand, to be written where one is made.
    """
    half = HALF.get(precision)
    if half is None:
        return round_to_tf32(x) if precision == "tf32" and x.device.type != "cuda" else x
    return x.to(half) if out is None else out.copy_(x)


def round_to_tf32(x: Tensor) -> Tensor:
    """Float32 rounded to the nearest number of ten bits after the point, ties away from zero; NaN and infinity stay."""
    if x.dtype == torch.float64:
        return round_to_tf32(x.float()).double()
    bits = x.contiguous().view(torch.int32)
    half = 1 << (_TF32_DROPPED_BITS - 1)
    rounded = ((bits + half) & -(1 << _TF32_DROPPED_BITS)).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x)


def matmul(
    a: Tensor,
    b: Tensor,
    precision: Precision,
    *,
    out: Tensor | None = None,
    may_round_result: bool = False,
    room: Tensor | None = None,
) -> Tensor:
    """``a @ b`` with operands in ``precision`` and sums in float32.

    Args:
        a: (m, k) floating, rounded here unless it is an operand already.
        b: (k, n), likewise.
        precision: of the product; where both operands are float64, ``float32`` is float64.
        out: (m, n) in the dtype of the result, to be written.
        may_round_result: whether a CPU may round the result to bfloat16, where that is twice as fast.
        room: (m, n) bfloat16 in which such a result may stand before it is copied into ``out``.

    Returns:
        (m, n) float32 (float64 for float64 operands); bfloat16 only where ``may_round_result`` and ``out`` is bfloat16.
    """
    if precision == "float16x3":
        return _split_matmul(a, b, out)
    a, b = round_operand(a, precision), round_operand(b, precision)
    if precision not in HALF:
        return torch.mm(a, b) if out is None else torch.mm(a, b, out=out)
    if a.device.type == "cpu" and may_round_result and precision == "bfloat16" and has_fast_bfloat16():
        if out is not None and out.dtype == torch.bfloat16:
            return torch.mm(a, b, out=out)
        product = torch.mm(a, b) if room is None else torch.mm(a, b, out=room)
        return product.float() if out is None else out.copy_(product)
    return _wide_mm(a, b, out)


def _wide_mm(a: Tensor, b: Tensor, out: Tensor | None) -> Tensor:
    """The product of two half-precision matrices in float32."""
    if a.device.type in ("cuda", "meta") and _has_out_dtype():
        if out is None or out.dtype != torch.float32:
            product = torch.mm(a, b, out_dtype=torch.float32)
            return product if out is None else out.copy_(product)
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    # every half-precision number is one of TF32 too: nothing is lost
    with cuda_products(tf32=True):
        wide = (a.float(), b.float())
        if out is None or out.dtype == torch.float32:
            return torch.mm(*wide) if out is None else torch.mm(*wide, out=out)
        return out.copy_(torch.mm(*wide))


@functools.cache
def _has_out_dtype() -> bool:
    """Whether torch.mm can give a float32 result of half-precision operands (since 2.8)."""
    return hasattr(torch.ops.aten.mm, "dtype")


@functools.cache
def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32: AVX-512 BF16 or AMX, through oneDNN."""
    backend: Any = torch.backends.mkldnn
    if not (backend.is_available() and backend.enabled):
        return False
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in checks)


def _split_matmul(a: Tensor, b: Tensor, out: Tensor | None) -> Tensor:
    left, a_factor = _scaled(a, 1)
    right, b_factor = _scaled(b, 0)
    (a_high, a_low), (b_high, b_low) = _split(left), _split(right)
    product = _wide_mm(torch.cat([a_high, a_high, a_low], 1), torch.cat([b_high, b_low, b_high], 0), None)
    # one after the other: the product of two factors may overflow
    product = product.to(a.dtype).mul_(a_factor.reciprocal()).mul_(b_factor.reciprocal())
    return product if out is None else out.copy_(product)


def _scaled(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """``x`` times the powers of two that bring the largest number of each row just below 2^11, and those powers.

    Args:
        x: (m, k).
        dim: the inner one of the product: every row (or column) along it has a power of its own.
    """
    if not x.numel():
        return x, torch.ones_like(x.sum(dim, keepdim=True))
    largest = x.abs().amax(dim, keepdim=True)
    exponent = _SPLIT_EXPONENT - torch.frexp(largest.float()).exponent
    exponent = torch.where((largest > 0) & largest.isfinite(), exponent, 0).clamp(-126, 126)
    factor = torch.ldexp(torch.ones_like(largest), exponent)
    return x * factor, factor


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """High and low part in float16: ``x - high - low`` is below 2^-22 of ``x``."""
    high = x.half()
    return high, (x - high).half()
