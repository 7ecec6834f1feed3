"""Input checks shared by the functions of this package."""

from __future__ import annotations

import torch
from torch import Tensor


def check_scored_pairs(values: Tensor, same: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Check one value per pair and return it as float64 beside the flags as bool.

    Args:
        values: Scores or distances, shape (P,), any real dtype.
        same: Whether a pair shows one identity, shape (P,), bool or integers 0 and 1.
        name: What to call ``values`` in an error.

    Returns:
        ``values`` as float64 and ``same`` as bool, on the device of ``values``.

    Raises:
        ValueError: On a wrong shape, unequal lengths, NaN, a flag other than 0 and 1, or when one of the two kinds
            of pairs is missing.
        TypeError: When an argument is not a tensor.
    """
    for label, tensor in ((name, values), ("same", same)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{label} must be a torch.Tensor, got {type(tensor).__name__}; convert it first")
        if tensor.ndim != 1:
            raise ValueError(f"{label} must have shape (P,), one entry per pair, got {tuple(tensor.shape)}")
    if values.shape != same.shape:
        raise ValueError(f"{name} has {len(values)} entries but same has {len(same)}; give one of each per pair")
    if same.dtype != torch.bool:
        if same.is_floating_point() or bool(((same != 0) & (same != 1)).any()):
            raise ValueError(
                f"same must be bool or integers 0 and 1, got dtype {same.dtype}; pass labels_a == labels_b"
            )
        same = same.bool()
    values = values.detach().to(torch.float64)
    if bool(values.isnan().any()):
        count = int(values.isnan().sum())
        raise ValueError(f"{name} holds NaN in {count} of {len(values)} pairs; look for embeddings that are not finite")
    num_same = int(same.sum())
    if num_same == 0 or num_same == len(same):
        missing = "genuine (same=True)" if num_same == 0 else "impostor (same=False)"
        raise ValueError(f"same holds no {missing} pair among {len(same)}; verification needs both kinds")
    return values, same.to(values.device)


def check_rate(value: float, name: str) -> float:
    """Return a false accept rate after checking that it lies in (0, 1].

    Raises:
        ValueError: When it does not.
    """
    value = float(value)
    if not 0.0 < value <= 1.0:
        raise ValueError(f"{name}={value} is no false accept rate; it must lie in (0, 1], for example 1e-3")
    return value
