"""From sums of exponentials to logarithms, and from what comes back to the factors of both gradients: B numbers each.

In plain torch these are some twenty operations on vectors, each a kernel of its own that takes longer to start than to
run.
"""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import Tensor

from lightning_pfc.kernels.library import operation

NO_NEGATIVES = -1e30
"""Logarithm of an empty sum: very low and finite, so that every derivative is zero and not NaN."""


def wide_dtype(like: Tensor) -> torch.dtype:
    """The dtype of long sums: float64, where the device has it."""
    return like.dtype if like.device.type == "mps" else torch.float64


def _pack_twin(sums: Tensor, cosine: Tensor, factor: float) -> Tensor:
    wide = wide_dtype(cosine)
    return torch.cat([(sums.to(wide) * factor)[None], cosine.t().to(wide)])


def _pack_fake(sums: Tensor, cosine: Tensor, factor: float) -> Tensor:
    return cosine.new_empty((cosine.shape[1] + 1, cosine.shape[0]), dtype=wide_dtype(cosine))


_pack = operation(
    "pack_sums(Tensor sums, Tensor cosine, float factor) -> Tensor",
    _pack_twin,
    _pack_fake,
    "lightning_pfc.kernels.gpu.vector_calls:pack_sums",
    launches=1,
)


def pack_sums(sums: Tensor, cosine: Tensor, factor: float, *, kernels: Container[str] | None = None) -> Tensor:
    """What is added up over the ranks, in one tensor.

    Args:
        sums: (B,) of exponentials.
        cosine: (B, P) of the positives, 0 for those of other ranks.
        factor: on the sums.
        kernels: which operations run as kernels, as :func:`~lightning_pfc.kernels.choice.choose` says.

    Returns:
        (P + 1, B) float64: ``factor * sums``, then the cosines.
    """
    packed: Tensor = _pack(sums, cosine, factor, kernels=kernels)
    return packed


def _unpack_twin(reduced: Tensor, positives: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    wide = reduced[0].log().clamp(min=NO_NEGATIVES)
    cosine = reduced[1 : 1 + positives].t().to(dtype).contiguous()
    return wide, wide.to(dtype, copy=True), cosine


def _unpack_fake(reduced: Tensor, positives: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.empty_like(reduced[0])
    return wide, wide.new_empty(wide.shape, dtype=dtype), wide.new_empty((wide.shape[0], positives), dtype=dtype)


_unpack = operation(
    "unpack_sums(Tensor reduced, int positives, ScalarType dtype) -> (Tensor, Tensor, Tensor)",
    _unpack_twin,
    _unpack_fake,
    "lightning_pfc.kernels.gpu.vector_calls:unpack_sums",
    launches=1,
)


def unpack_sums(
    reduced: Tensor, positives: int, dtype: torch.dtype, *, kernels: Container[str] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What all ranks know together.

    Args:
        reduced: (P + 1 or more, B) float64, as :func:`pack_sums` gave it on every rank, added up.
        positives: P.
        dtype: of what the loss computes with.
        kernels: as there.

    Returns:
        Log-sum-exp (B,) in float64 and in ``dtype``, at least :data:`NO_NEGATIVES`; cosines (B, P) in ``dtype``.
    """
    wide, narrow, cosine = _unpack(reduced, positives, dtype, kernels=kernels)
    return wide, narrow, cosine


def _begin_twin(
    x: Tensor,
    x_sums: Tensor | None,
    logsumexp: Tensor,
    grad: Tensor,
    scale: float,
    reference: float,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    there = logsumexp > NO_NEGATIVES
    share = torch.exp(reference - torch.where(there, logsumexp, reference))
    factors = torch.where(there, share * grad.to(share.dtype) * scale, 0.0).to(x.dtype)
    nothing = x.new_empty((0, x.shape[1]))
    weighted = nothing if dtype is None else (x * factors[:, None]).to(dtype)
    return factors, weighted, nothing.clone() if x_sums is None else factors[:, None] * x_sums


def _begin_fake(
    x: Tensor,
    x_sums: Tensor | None,
    logsumexp: Tensor,
    grad: Tensor,
    scale: float,
    reference: float,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    nothing = (0, x.shape[1])
    weighted = x.new_empty(nothing if dtype is None else x.shape, dtype=dtype or x.dtype)
    return x.new_empty(x.shape[:1]), weighted, x.new_empty(nothing if x_sums is None else x.shape)


_begin = operation(
    "begin_gradients(Tensor x, Tensor? x_sums, Tensor logsumexp, Tensor grad, float scale, float reference,"
    " ScalarType? dtype) -> (Tensor, Tensor, Tensor)",
    _begin_twin,
    _begin_fake,
    "lightning_pfc.kernels.gpu.vector_calls:begin_gradients",
    launches=1,
)


def begin_gradients(
    x: Tensor,
    x_sums: Tensor | None,
    logsumexp: Tensor,
    grad: Tensor,
    scale: float,
    reference: float,
    dtype: torch.dtype | None,
    *,
    kernels: Container[str] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The factors c of both gradients, and what is ready at once.

    Args:
        x: (B, D) float32, unit rows.
        x_sums: (B, D) ``E U``; None where it is not known.
        logsumexp: (B,) float64.
        grad: (B,) float32, what comes back to it.
        scale: s.
        reference: what was taken off every logit.
        dtype: in which ``c x`` is wanted; None: not at all.
        kernels: which operations run as kernels, as :func:`~lightning_pfc.kernels.choice.choose` says.

    Returns:
        ``c = s grad exp(reference - logsumexp)`` (B,), 0 where there is no negative; ``c x`` (B, D); ``c E U`` (B, D).
        What is not there has no rows.
    """
    factors, weighted, x_grad = _begin(x, x_sums, logsumexp, grad, scale, reference, dtype, kernels=kernels)
    return factors, weighted, x_grad
