"""Arguments of a head that are numbers or names, and what is said of wrong ones."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat, SupportsIndex

import torch

from lightning_pfc.argument_kinds import is_kind
from lightning_pfc.heads.sampling import Sampler, Uniform
from lightning_pfc.heads.softmax.chunking import budget_bytes
from lightning_pfc.ignored import warn_ignored
from lightning_pfc.losses import Loss
from lightning_pfc.losses.auxiliary import AuxiliaryLoss, auxiliary_loss_from_config


def check_options(
    embedding_dim: int,
    num_classes: int,
    sample_rate: float,
    chunk_size: int | None,
    gradient_filter: float,
    memory_budget: int | str | None,
    precision: str,
    check_finite: bool,
) -> None:
    """Raise for a number out of its range, or what is no number."""
    if embedding_dim < 1:
        raise ValueError(f"embedding_dim={embedding_dim} must be at least 1.")
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes} must be at least 1.")
    sample_rate, gradient_filter = as_plain("sample_rate", sample_rate), as_plain("gradient_filter", gradient_filter)
    as_plain("check_finite", check_finite)
    if not 0.0 <= sample_rate <= 1.0:
        raise ValueError(f"sample_rate={sample_rate} must lie in [0, 1]; 1 is the exact softmax.")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1, or None to choose.")
    if not 0.0 <= gradient_filter < 1.0:
        raise ValueError(f"gradient_filter={gradient_filter} must lie in [0, 1); 0 is exact, 1e-3 a usual tolerance.")
    budget_bytes(memory_budget, torch.device("cpu"))
    if gradient_filter > 0 and precision not in ("auto", "float32"):
        raise ValueError(
            f"gradient_filter={gradient_filter} works in float32, and precision={precision!r}; leave one out."
        )


def as_plain(name: str, value: Any) -> Any:
    """A flag or a share as Python's own ``bool`` or ``float``, from numpy's, 0 and 1, or a tensor of one number.

    Anything else is given back. The rule for what passes is that of constructors, :mod:`lightning_pfc.checked`.

    Raises:
        TypeError: for a value of another kind; NaN is a number out of range.
    """
    if name == "check_finite":
        if not is_kind(value, bool):
            raise TypeError(f"head.check_finite={value!r} must be True or False.")
        return bool(value)
    if name not in ("sample_rate", "gradient_filter"):
        return value
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        raise TypeError(f"head.{name}={value!r} must be a number.")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # a tensor of several
        raise TypeError(f"head.{name}={value!r} must be a number.") from None


def as_seed(seed: SupportsIndex) -> int:
    """A whole number; TypeError for anything else."""
    if isinstance(seed, bool) or not isinstance(seed, SupportsIndex):
        raise TypeError(f"seed={seed!r} must be a whole number.")
    return operator.index(seed)


def as_auxiliary_losses(losses: Sequence[AuxiliaryLoss | str | Mapping[str, Any]]) -> tuple[AuxiliaryLoss, ...]:
    """Each from itself, its name or a mapping; TypeError for what is no list of them."""
    if isinstance(losses, str) or not isinstance(losses, Sequence):
        raise TypeError(f"head.auxiliary_losses={losses!r} must be a list; [] for none.")
    return tuple(auxiliary_loss_from_config(part) for part in losses)


def check_filter(gradient_filter: float, device: torch.device) -> None:
    """Raise for a gradient filter where it cannot work."""
    if gradient_filter > 0 and device.type != "cpu":
        raise ValueError(f"gradient_filter={gradient_filter} works on a CPU only; on {device} use 0.")


def check_weights(sampler: Sampler, loss: Loss) -> None:
    """Raise for a sampler that weighs negatives and a loss that sums their logits as they are."""
    if sampler.reweights_negatives and loss.needs_negative_sum:
        raise ValueError(
            f"sampler={sampler} weighs the negatives, and {type(loss).__name__} with label_smoothing="
            f"{loss.label_smoothing} sums their logits as they are; leave out one of the two."
        )


def check_sampling(sampler: Sampler, loss: Loss, sample_rate: float) -> None:
    """Raise as :func:`check_weights`, warn as :func:`warn_of_idle_sampler`."""
    check_weights(sampler, loss)
    warn_of_idle_sampler(sampler, sample_rate, stacklevel=5)


def warn_of_idle_sampler(sampler: Sampler, sample_rate: float, stacklevel: int = 4) -> None:
    """Say so where a sampler was chosen and no class is ever left out."""
    if not sampler.is_subsampling(sample_rate) and sampler != Uniform():
        warn_ignored(
            f"sampler={sampler}",
            f"sample_rate={sample_rate:g} takes every class in every step; give a rate below 1, or no sampler.",
            stacklevel=stacklevel,
        )


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A floating dtype, or the one of that name; TypeError for anything else."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise TypeError(f"dtype={dtype} must be a floating dtype, such as float32 or bfloat16.")
    return found
