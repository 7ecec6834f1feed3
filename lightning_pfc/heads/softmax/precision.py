"""In what precision the head multiplies: the words a user may give, what ``auto`` becomes, what each word means.

Only the head's three products are meant (scores, gradient of the embeddings, gradient of the centers). Sums of
exponentials, margins, norms, the targets' own cosines with their part of both gradients, and what the optimizer sees
are float32 in every precision (float64 for float64 embeddings).

``auto`` is float32 on a CPU and in a plain script; on an accelerator under a Trainer it is bfloat16 where the Trainer's
precision is a half one, and TF32 under ``32-true`` where the user allows it (``torch.set_float32_matmul_precision``, or
``torch.backends.cuda.matmul.fp32_precision``).

**Errors.** With u the unit roundoff of an operand (2^-24, 2^-11 in TF32 and float16, 2^-8 in bfloat16) a cosine of unit
rows is off by at most 2 u, and, since roundings are independent, by about ``u / sqrt(D)``: a logit by ``sigma = s u /
sqrt(D)``. An exponential is off by ``e = sigma + v + f`` relatively, with v the unit roundoff of what is kept and ``f =
s 2^-24`` what the logit's own float32 costs. Over the classes the errors average: with ``q = sum of p_j^2`` (1 where
one negative has it all, about ``exp(s^2 / D) / C`` at the start) and a = 6, a bound that chance does not reach,::

    log-sum-exp               a e sqrt(q) + sigma^2 + f
    embedding's gradient      s (t + r |m|),  |m| = |sum of p_j u_j|
    centers' gradient, all    (s |t of all rows| + r |gradient of the unit rows|) / |w|
    t                         a (e sqrt(q (1 - q)) + u' sqrt(q)) + 2^-24 sqrt(C q)

with u' the unit roundoff in the backward products and r that of their result, 2^-8 where a CPU rounds it to bfloat16,
else 2^-21. The last term of t is float32's own where a library adds the C classes one after the other, as some do for
few rows; most add in blocks, and stay far below. The loss of a row is off by ``1 - p`` times the log-sum-exp's error.
:func:`error_bounds` gives the numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_pfc.matmul.float32 import tf32_is_allowed
from lightning_pfc.matmul.in_precision import Precision

PrecisionWord = Literal["auto", "float32", "tf32", "bfloat16", "float16", "float16x3"]
"""What a user may ask for."""


@dataclass(frozen=True)
class Arithmetic:
    """What a precision means.

    Attributes:
        precision: its word.
        operands: dtype of unit rows, embeddings and centers, in the product that gives the scores. A float32 of fewer
            bits (``tf32``) is kept in a float32; of ``float16x3`` this is the dtype of the parts.
        kept: dtype of the exponentials that are kept for the backward pass. They reach from ``exp(-64)`` to
            ``exp(64)``, which a float16 cannot hold.
        gradients: precision of the two products of the backward pass. ``float16`` computes scores in float16, three
            bits better than bfloat16 where all numbers are below 1, and gradients in bfloat16, which has the range.
        unit_roundoff: largest relative error of rounding one operand of the scores.
        kept_roundoff: the same of an exponential that is kept.
    """

    precision: Precision
    operands: torch.dtype
    kept: torch.dtype
    gradients: Precision
    unit_roundoff: float
    kept_roundoff: float


ARITHMETIC: dict[Precision, Arithmetic] = {
    "float32": Arithmetic("float32", torch.float32, torch.float32, "float32", 2.0**-24, 2.0**-24),
    "tf32": Arithmetic("tf32", torch.float32, torch.float32, "tf32", 2.0**-11, 2.0**-11),
    "bfloat16": Arithmetic("bfloat16", torch.bfloat16, torch.bfloat16, "bfloat16", 2.0**-8, 2.0**-8),
    "float16": Arithmetic("float16", torch.float16, torch.bfloat16, "bfloat16", 2.0**-11, 2.0**-8),
    "float16x3": Arithmetic("float16x3", torch.float16, torch.float32, "float16x3", 2.0**-22, 2.0**-22),
}
"""Every precision by its word."""


_DEVIATIONS = 6.0  # of a normal distribution: never reached in a billion rows


def check_precision(word: str) -> PrecisionWord:
    """The word itself.

    Raises:
        ValueError: if it is none.
    """
    if word not in get_args(PrecisionWord):
        raise ValueError(f"precision={word!r} is unknown; use one of {', '.join(get_args(PrecisionWord))}.")
    return word  # type: ignore[return-value]


def resolve_precision(word: str, device: torch.device, trainer_precision: str | None = None) -> Precision:
    """What products are computed in, once and for all.

    Args:
        word: what the user asked for; anything but ``auto`` is what it says.
        device: where the head computes.
        trainer_precision: the Trainer's, in Lightning's words (``"bf16-mixed"``); None in a plain script.

    Returns:
        For ``auto``: ``float32`` on a CPU and in a plain script. On an accelerator under a Trainer, ``bfloat16`` for
        every half precision, ``tf32`` for ``32-true`` where the user allows it, else ``float32``.

    Raises:
        ValueError: if the word is none.
    """
    word = check_precision(word)
    if word != "auto":
        return word
    if device.type == "cpu" or trainer_precision is None:
        return "float32"
    if trainer_precision.startswith(("16", "bf16", "transformer-engine")):
        return "bfloat16"
    if trainer_precision.startswith("32") and device.type == "cuda" and tf32_is_allowed():
        return "tf32"
    return "float32"


@dataclass(frozen=True, eq=False)
class ErrorBounds:
    """How far a pass in some precision may be from exact arithmetic; the formulas stand at the top of this module.

    Attributes:
        scale: s.
        logsumexp: (B,) of the negatives' log-sum-exp.
        averaged: (B,) t.
        rounded: r.
    """

    scale: float
    logsumexp: Tensor
    averaged: Tensor
    rounded: float

    def x_grad(self, length: Tensor) -> Tensor:
        """(B,) length of the error in d log-sum-exp / d embedding, which is ``s`` times ``length`` (B,) long."""
        return self.scale * (self.averaged + self.rounded * length)

    def center_grad(self, length: Tensor) -> Tensor:
        """() of the error in the gradient of all unit rows together, which is ``length`` () long."""
        return self.scale * self.averaged.square().sum().sqrt() + self.rounded * length


def error_bounds(precision: Precision, scale: float, dim: int, classes: int, concentration: Tensor) -> ErrorBounds:
    """Bounds of the errors of a pass over the classes.

    Args:
        precision: of the products.
        scale: s, of the logits.
        dim: D.
        classes: C, that one product sums over.
        concentration: (B,) q, the sum over a row's negatives of their squared probabilities.
    """
    own = ARITHMETIC[precision]
    backward = ARITHMETIC[own.gradients]
    logit, float32 = scale * own.unit_roundoff / math.sqrt(dim), scale * 2.0**-24
    share = concentration.sqrt()
    error = logit + own.kept_roundoff + float32
    return ErrorBounds(
        scale,
        _DEVIATIONS * error * share + logit**2 + float32,
        _DEVIATIONS * share * (error * (1.0 - concentration).clamp(min=0.0).sqrt() + backward.unit_roundoff)
        + 2.0**-24 * math.sqrt(classes) * share,
        backward.unit_roundoff if own.kept == torch.bfloat16 else 2.0**-21,
    )
