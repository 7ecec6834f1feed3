"""The learning rate for a global batch, from one that was found at another."""

from __future__ import annotations

from typing import Literal

Rule = Literal["linear", "sqrt"]


def scale_lr(lr: float, *, global_batch: int, reference_batch: int | None, rule: str = "linear") -> float:
    """The learning rate for a global batch, from one that was found at another.

    Args:
        lr: Learning rate at ``reference_batch``.
        global_batch: Samples per optimizer step, over all ranks and accumulated batches.
        reference_batch: The batch that ``lr`` is meant for; None leaves it as it is.
        rule: ``"linear"`` (Goyal et al., arXiv:1706.02677) or ``"sqrt"`` (Krizhevsky, arXiv:1404.5997, section 5).

    Raises:
        ValueError: If a batch is not positive or the rule is unknown.
    """
    exponents = {"linear": 1.0, "sqrt": 0.5}
    if rule not in exponents:
        raise ValueError(f"rule={rule!r} is unknown; give one of {sorted(exponents)}.")
    if reference_batch is None:
        return lr
    for name, batch in (("global_batch", global_batch), ("reference_batch", reference_batch)):
        if batch < 1:
            raise ValueError(f"{name}={batch} is not a number of samples; give at least 1.")
    return lr * float((global_batch / reference_batch) ** exponents[rule])


def describe_lr(lr: float, *, global_batch: int, reference_batch: int | None, rule: str = "linear") -> str:
    """One line that says how :func:`scale_lr` comes to its result.

    Example:
        >>> describe_lr(0.1, global_batch=512, reference_batch=1024)
        'lr 0.05 = 0.1 x (512 / 1024), global batch 512 (linear rule)'
        >>> describe_lr(0.1, global_batch=512, reference_batch=None)
        'lr 0.1, global batch 512 (not scaled)'
    """
    scaled = scale_lr(lr, global_batch=global_batch, reference_batch=reference_batch, rule=rule)
    if reference_batch is None:
        return f"lr {scaled:g}, global batch {global_batch} (not scaled)"
    ratio = f"({global_batch} / {reference_batch})" + ("" if rule == "linear" else " ** 0.5")
    return f"lr {scaled:g} = {lr:g} x {ratio}, global batch {global_batch} ({rule} rule)"
