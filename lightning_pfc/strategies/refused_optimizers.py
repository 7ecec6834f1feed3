"""Optimizers that cannot do under a Trainer's settings what they promise, refused before they take a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.optim import Optimizer

from lightning_pfc.optim.base import updates_in_backward


def refuse_fused(optimizers: Sequence[Optimizer]) -> None:
    """Under a loss scaler, with shards.

    Raises:
        ValueError: for an optimizer with ``fused=True``.
    """
    for optimizer in optimizers:
        if any(group.get("fused") for group in optimizer.param_groups):
            raise ValueError(
                f"{type(optimizer).__name__}(fused=True) unscales gradients inside its step, where the ranks "
                "cannot agree on an overflow in one of their shards. Use fused=False, or precision='bf16-mixed'."
            )


def refuse_negative_clipping(trainer: Trainer) -> None:
    """A negative bound would turn every gradient around, and Lightning takes it as it is.

    Raises:
        ValueError: where the trainer has one.
    """
    if trainer.gradient_clip_val is not None and not trainer.gradient_clip_val >= 0:
        raise ValueError(f"gradient_clip_val={trainer.gradient_clip_val} must be at least 0; None clips nothing.")


def refuse_early_updates(
    optimizers: Sequence[Optimizer], trainer: Trainer, scaled: bool, clip: Literal["global", "backbone"]
) -> None:
    """Centers that are updated inside the backward pass never have a gradient that something could change later.

    Raises:
        ValueError: where clipping, accumulation or a loss scaler would have to.
    """
    for optimizer in optimizers:
        if not updates_in_backward(optimizer):
            continue
        schedulers = [c for c in trainer.callbacks if isinstance(c, GradientAccumulationScheduler)]  # type: ignore[attr-defined]
        factors = [trainer.accumulate_grad_batches, *(n for c in schedulers for n in c.scheduling.values())]
        by_norm = trainer.gradient_clip_algorithm in (None, "norm")
        problem, way_out = "", ""
        if trainer.gradient_clip_val and not (by_norm and clip == "backbone"):
            problem = f"gradient_clip_val={trainer.gradient_clip_val}, which comes too late for the centers"
            way_out = 'no clipping, or clipping by norm with PartialFCStrategy(clip="backbone")'
        elif max(factors) > 1:
            problem = f"accumulate_grad_batches={max(factors)}, since every backward pass steps the centers"
            way_out = "accumulate_grad_batches=1"
        elif scaled:
            problem = "precision='16-mixed', since the gradients in the backward pass are scaled"
            way_out = "precision='bf16-mixed' or '32-true'"
        if problem:
            raise ValueError(
                f"{type(optimizer).__name__}(update_in_backward=True) cannot be used with {problem}. Use "
                f"update_in_backward=False, or {way_out}."
            )
