"""In what precision the head multiplies: the words a user may give, what ``auto`` becomes, what each word means.

Only the head's three products are meant (scores, gradient of the embeddings, gradient of the centers). Sums of
exponentials, margins, norms, the targets' own scores and what the optimizer sees are float32 in every precision
(float64 for float64 embeddings).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

Precision = Literal["float32", "tf32", "bfloat16", "float16", "float16x3"]
"""A precision that products can be computed in."""
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
        every half precision, ``tf32`` for ``32-true`` where ``torch.set_float32_matmul_precision`` allows it, else
        ``float32``.

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
    if (
        trainer_precision.startswith("32")
        and device.type == "cuda"
        and torch.get_float32_matmul_precision() != "highest"
    ):
        return "tf32"
    return "float32"
