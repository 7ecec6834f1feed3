"""Learning rate schedules over a number of steps that comes from the data and the trainer.

Each factory returns a ``LambdaLR`` to be stepped once per optimizer step (``interval: step`` in Lightning). The factor
of a step is a closed formula of its number, so that a resumed run is where it was, and follows the trainer if that now
runs for longer.

Warm-up is linear: step ``i`` of ``w`` has the factor ``(i + 1) / w``, so that the first step is small and the last one
has the full rate. The schedule proper begins after it and ends with the last step.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_pfc.names.renamed import renamed_names

Factor = Callable[[int], float]


def polynomial(
    optimizer: Optimizer,
    *,
    total_steps: float,
    steps_per_epoch: float,
    power: float = 2.0,
    end_factor: float = 0.0,
    warmup_epochs: float = 0.0,
    warmup_steps: int | None = None,
) -> LambdaLR:
    """``end + (1 - end) * (1 - t) ** power`` for ``t`` from 0 to 1.

    Args:
        optimizer: Its groups' learning rates are the full rates.
        total_steps: Optimizer steps of the whole run.
        steps_per_epoch: Optimizer steps of one pass over the data.
        power: 1 is a straight line. The published Partial FC runs of 2021 and 2022 used 2.
        end_factor: Factor at the end.
        warmup_epochs: Length of the warm-up in epochs, which may be a fraction.
        warmup_steps: Length of the warm-up in steps, in place of epochs.

    Raises:
        ValueError: If a number is out of range, the run has no end, or the warm-up is given twice.
    """
    _at_least("power", power, 0.0)
    _at_least("end_factor", end_factor, 0.0)
    warmup, steps = _lengths(total_steps, steps_per_epoch, warmup_epochs, warmup_steps)

    def factor(step: int) -> float:
        return end_factor + (1 - end_factor) * math.pow(1 - min(step / steps, 1.0), power)

    return LambdaLR(optimizer, _warmed_up(factor, warmup))


def cosine(
    optimizer: Optimizer,
    *,
    total_steps: float,
    steps_per_epoch: float,
    end_factor: float = 0.0,
    warmup_epochs: float = 0.0,
    warmup_steps: int | None = None,
) -> LambdaLR:
    """Half a period of a cosine (Loshchilov and Hutter, arXiv:1608.03983, eq. 5).

    Args and errors: as in :func:`polynomial`.
    """
    _at_least("end_factor", end_factor, 0.0)
    warmup, steps = _lengths(total_steps, steps_per_epoch, warmup_epochs, warmup_steps)
    return LambdaLR(optimizer, _warmed_up(lambda step: _half_cosine(min(step / steps, 1.0), end_factor), warmup))


def cosine_with_restarts(
    optimizer: Optimizer,
    *,
    total_steps: float,
    steps_per_epoch: float,
    period_epochs: float,
    period_factor: float = 1.0,
    end_factor: float = 0.0,
    warmup_epochs: float = 0.0,
    warmup_steps: int | None = None,
) -> LambdaLR:
    """Cosines one after another, each from the full rate down (SGDR: arXiv:1608.03983, section 3).

    Args:
        optimizer: As in :func:`polynomial`, like the other arguments.
        total_steps: Optimizer steps of the whole run, which may be endless here.
        steps_per_epoch: Optimizer steps of one pass over the data.
        period_epochs: Length of the first period in epochs, which may be a fraction.
        period_factor: Each period is so many times as long as the one before.
        end_factor: Factor at the end of a period.
        warmup_epochs: Length of the warm-up, before the first period.
        warmup_steps: The same in steps, in place of epochs.

    Raises:
        ValueError: As in :func:`polynomial`, or if a period is shorter than one step or ``period_factor`` less than 1.
    """
    _at_least("end_factor", end_factor, 0.0)
    _at_least("period_factor", period_factor, 1.0)
    warmup, _ = _lengths(total_steps, steps_per_epoch, warmup_epochs, warmup_steps, may_be_endless=True)
    period = round(period_epochs * steps_per_epoch)
    if period < 1:
        raise ValueError(
            f"period_epochs={period_epochs} is {period} steps of {steps_per_epoch:g} in an epoch; give at least one."
        )

    def factor(step: int) -> float:
        if period_factor == 1.0:
            return _half_cosine(step % period / period, end_factor)
        # Periods 0 to k - 1 take period * (factor^k - 1) / (factor - 1) steps: solve for k.
        growth = period_factor - 1
        past = int(math.log(step / period * growth + 1, period_factor) + 1e-9)
        start = period * (period_factor**past - 1) / growth
        return _half_cosine((step - start) / (period * period_factor**past), end_factor)

    return LambdaLR(optimizer, _warmed_up(factor, warmup))


def multi_step(
    optimizer: Optimizer,
    *,
    total_steps: float,
    steps_per_epoch: float,
    milestones: Sequence[float],
    gamma: float = 0.1,
    warmup_epochs: float = 0.0,
    warmup_steps: int | None = None,
) -> LambdaLR:
    """The rate times ``gamma`` at each milestone.

    Args:
        optimizer: As in :func:`polynomial`, like the other arguments.
        total_steps: Optimizer steps of the whole run, which may be endless here.
        steps_per_epoch: Optimizer steps of one pass over the data.
        milestones: Ascending numbers of epochs, counted from the start of the run, warm-up included.
        gamma: Factor.
        warmup_epochs: Length of the warm-up.
        warmup_steps: The same in steps, in place of epochs.

    Raises:
        ValueError: As in :func:`polynomial`, or if the milestones do not ascend.
    """
    _at_least("gamma", gamma, 0.0)
    if list(milestones) != sorted(milestones):
        raise ValueError(f"milestones={list(milestones)} do not ascend; give epochs such as [10, 16].")
    warmup, _ = _lengths(total_steps, steps_per_epoch, warmup_epochs, warmup_steps, may_be_endless=True)
    at = [round(epochs * steps_per_epoch) for epochs in milestones]
    return LambdaLR(optimizer, _warmed_up(lambda step: gamma ** bisect_right(at, step + warmup), warmup))


def constant(
    optimizer: Optimizer,
    *,
    total_steps: float,
    steps_per_epoch: float,
    warmup_epochs: float = 0.0,
    warmup_steps: int | None = None,
) -> LambdaLR:
    """The full rate after the warm-up. Args and errors: as in :func:`polynomial`, but the run may be endless."""
    warmup, _ = _lengths(total_steps, steps_per_epoch, warmup_epochs, warmup_steps, may_be_endless=True)
    return LambdaLR(optimizer, _warmed_up(lambda step: 1.0, warmup))


def _half_cosine(t: float, end_factor: float) -> float:
    return end_factor + (1 - end_factor) * (1 + math.cos(math.pi * t)) / 2


def _warmed_up(factor: Factor, warmup: int) -> Factor:
    """``factor`` of the steps after ``warmup`` of them.

    A plain function: of an object LambdaLR would keep the state in checkpoints, and a resumed run would go on with the
    length of the old one.
    """
    return lambda step: (step + 1) / warmup if step < warmup else factor(step - warmup)


def _lengths(
    total_steps: float,
    steps_per_epoch: float,
    warmup_epochs: float,
    warmup_steps: int | None,
    *,
    may_be_endless: bool = False,
) -> tuple[int, float]:
    """Steps of the warm-up, and steps after it (at least 1, so that a run of a few steps for a try-out works)."""
    if not steps_per_epoch > 0:
        raise ValueError(
            f"steps_per_epoch={steps_per_epoch} must be positive; is the training set smaller than one batch?"
        )
    if not total_steps > 0 or (math.isinf(total_steps) and not may_be_endless):
        raise ValueError(
            f"total_steps={total_steps} is not the length of a run; set trainer.max_epochs or trainer.max_steps."
        )
    if warmup_steps is not None and warmup_epochs != 0:
        raise ValueError(
            f"warmup_epochs={warmup_epochs} and warmup_steps={warmup_steps} are both given; give one of them."
        )
    _at_least("warmup_epochs", warmup_epochs, 0.0)
    _at_least("warmup_steps", warmup_steps or 0, 0.0)
    warmup = warmup_steps if warmup_steps is not None else round(warmup_epochs * steps_per_epoch)
    return warmup, max(1, total_steps - warmup)


def _at_least(name: str, value: float, lowest: float) -> None:
    if not value >= lowest:
        raise ValueError(f"{name}={value} is not allowed; give a number >= {lowest:g}.")


_OF_LR_SCALING = ("describe_lr", "scale_lr")
__getattr__ = renamed_names(__name__, {name: f"lightning_pfc.optim.lr_scaling:{name}" for name in _OF_LR_SCALING})
