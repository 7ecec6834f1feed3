"""Arguments of a head that are numbers or names, and what is said of wrong ones."""

from __future__ import annotations

import torch

from lightning_pfc.heads.sampling import Sampler, Uniform
from lightning_pfc.heads.softmax.chunking import budget_bytes
from lightning_pfc.ignored import warn_ignored
from lightning_pfc.losses import Loss


def check_options(
    embedding_dim: int,
    num_classes: int,
    sample_rate: float,
    chunk_size: int | None,
    gradient_filter: float,
    memory_budget: int | str | None,
    precision: str,
) -> None:
    """Raise for a number out of its range."""
    if embedding_dim < 1:
        raise ValueError(f"embedding_dim={embedding_dim} must be at least 1.")
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes} must be at least 1.")
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


def warn_of_idle_sampler(sampler: Sampler, sample_rate: float) -> None:
    """Say so where a sampler was chosen and no class is ever left out."""
    if not sampler.is_subsampling(sample_rate) and sampler != Uniform():
        warn_ignored(
            f"sampler={sampler}",
            f"sample_rate={sample_rate:g} takes every class in every step; give a rate below 1, or no sampler.",
            stacklevel=4,
        )


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A floating dtype, or the one of that name; TypeError for anything else."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise TypeError(f"dtype={dtype} must be a floating dtype, such as float32 or bfloat16.")
    return found
