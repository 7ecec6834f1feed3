"""Every optimizer that steps a shard is tried once; then its steps are left alone, made whole, or refused."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from types import NoneType
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.optim import Optimizer

from lightning_pfc.distributed import Comm
from lightning_pfc.distributed.class_rows import class_rows
from lightning_pfc.optim.base import RowSparseOptimizer
from lightning_pfc.optim.foreign.gradient import plain
from lightning_pfc.optim.foreign.shard import row_shard
from lightning_pfc.optim.foreign.trial import SIZES, Outcome, Trial, is_trying
from lightning_pfc.optim.foreign.whole import WholeStep, family

_log = logging.getLogger(__name__)


_EXACT, _CLOSE = 1e-5, 1e-4  # differences relative to the length of the update
_FAR, _BF16 = 1 / 3, 2.0**-8  # what computes in bfloat16 is as close as the rounding of its gradients

_SPLITS = ("ZeroRedundancyOptimizer",)  # each parameter is stepped by one rank, and sent to the others


class Kind(IntEnum):
    """What an optimizer does with the shard of a parameter; the larger the worse."""

    BY_ROWS = 0  # looks at one number or one row at a time: any part of the rows is as good as all
    WHOLE = 1  # reduces over a parameter, and is right where torch reduces over the ranks
    UNKNOWN = 2  # could not be tried
    REFUSED = 3  # reduces over a parameter, and cannot be made right


@dataclass(frozen=True)
class Verdict:
    """What :func:`check_optimizer` found, why, and which state has an entry per row."""

    kind: Kind
    why: str = ""
    row_keys: Mapping[str, bool] = field(default_factory=dict)


_verdicts: WeakKeyDictionary[Optimizer, tuple[Any, Verdict]] = WeakKeyDictionary()
_open: WeakKeyDictionary[Optimizer, WholeStep] = WeakKeyDictionary()


def check_optimizer(optimizer: Optimizer) -> Verdict:
    """Try an optimizer that holds shards: a copy of it steps small parameters, whole, in parts, and sharded.

    Collective over the ranks that share the rows, at the first call for an optimizer, and again after its groups or
    options change; later calls answer at once. Of an optimizer without a shard nothing is asked.

    Raises:
        ValueError: on every rank, for ZeroRedundancyOptimizer, and for an optimizer that takes a norm, or another
            number, over a whole parameter, and cannot be given that of all shards.

    Warns:
        UserWarning: for one that could not be tried.
    """
    if isinstance(optimizer, RowSparseOptimizer):
        return Verdict(Kind.BY_ROWS)
    comm = next((row_shard(param).comm for param in _shards(optimizer)), None)  # type: ignore[union-attr]
    if comm is None:
        return Verdict(Kind.BY_ROWS)
    if any(base.__name__ in _SPLITS for base in type(optimizer).__mro__):
        raise ValueError(_split_message(optimizer))
    signature = tuple(_signature(optimizer))
    known = _verdicts.get(optimizer)
    if known is None or known[0] != signature:
        verdict = _try(optimizer, comm)
        _verdicts[optimizer] = known = (signature, verdict)
        if verdict.kind == Kind.UNKNOWN:
            warnings.warn(_unknown_message(optimizer, verdict, comm), stacklevel=2)
        elif verdict.kind == Kind.WHOLE:
            _log.info("%s reduces over parameters; over a head's shards it does so over all ranks.", _name(optimizer))
    if known[1].kind == Kind.REFUSED:
        raise ValueError(_refusal(optimizer, known[1], comm))
    return known[1]


def before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Hook of every optimizer in the process: does nothing for one without shards."""
    if is_trying():
        return None
    after_step(optimizer, (), {})  # of a step that ended in an error
    shards = list(_shards(optimizer))
    for param in shards:
        if param.grad is not None:
            param.grad = plain(param.grad)
        _keep_first_row(param)
    if not shards or (verdict := check_optimizer(optimizer)).kind != Kind.WHOLE:
        return None
    step = WholeStep(optimizer, verdict.row_keys)
    step.enter()
    _open[optimizer] = step
    return step.arguments(args, kwargs)


def _keep_first_row(param: Tensor) -> None:
    record = class_rows(param)
    if record is not None and param.grad is not None and not param.grad.is_sparse and param.grad.shape[0]:
        record.stepped = param.grad[0].detach().clone()


def after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Hook of every optimizer in the process: ends what :func:`before_step` began."""
    step = _open.pop(optimizer, None)
    if step is not None:
        step.leave()


def _try(optimizer: Optimizer, comm: Comm) -> Verdict:
    """The worst of what toys of several sizes show, the same on every rank. Raises nothing."""
    worst = Verdict(Kind.BY_ROWS)
    for size in SIZES:
        found = _try_size(optimizer, comm, size)
        row_keys = {**worst.row_keys, **found.row_keys}
        worst = replace(found if found.kind >= worst.kind else worst, row_keys=row_keys)
        if worst.kind > Kind.WHOLE:
            break
    return worst


def _try_size(optimizer: Optimizer, comm: Comm, size: tuple[int, int]) -> Verdict:
    trial = Trial(optimizer, comm, size)
    try:
        whole = trial.run("whole")
        apart = whole.distance(trial.run("part"), trial.own)
        found = Verdict(Kind.WHOLE if apart > _EXACT else Kind.BY_ROWS, row_keys=whole.row_keys)
    except Exception as error:  # whatever somebody's optimizer raises
        found = Verdict(Kind.UNKNOWN, _first_line(error))
    found = _agreed(found, comm)
    return found if found.kind != Kind.WHOLE else _agreed(_judged(trial, whole, apart), comm)


def _judged(trial: Trial, whole: Outcome, apart: float) -> Verdict:
    """Whether an optimizer whose parts are ``apart`` from the whole is right where they are shards."""
    try:
        sharded = trial.run("sharded")
    except Exception as error:
        return Verdict(Kind.REFUSED, _first_line(error))
    distance = whole.distance(sharded, trial.own)
    rounded = distance <= _FAR * apart and distance <= 8 * whole.distance(trial.run("whole", noise=_BF16))
    if distance <= _CLOSE or rounded:
        return Verdict(Kind.WHOLE, row_keys=sharded.row_keys)
    if whole.distance(trial.run("whole", seed=1)) > _EXACT:
        return Verdict(Kind.UNKNOWN, "it draws random numbers")
    return Verdict(Kind.REFUSED, f"tried on a small parameter, shards gave another step, off by {distance:.1g}")


def _agreed(verdict: Verdict, comm: Comm) -> Verdict:
    """The worst that any rank found, so that all go the same way. One small exchange."""
    kinds = [values[0] for values in comm.agreement.exchange("trial of an optimizer", [int(verdict.kind)])]
    return verdict if verdict.kind == max(kinds) else Verdict(Kind(max(kinds)), "it failed on another rank")


def _shards(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        for param in group["params"]:
            if row_shard(param) is not None:
                yield param


def _signature(optimizer: Optimizer) -> Iterator[Any]:
    """What a verdict depends on: which shards there are, and every option that is no number."""
    for member in family(optimizer):
        for group in member.param_groups:
            yield tuple(id(param) for param in group["params"] if row_shard(param) is not None)
            yield tuple((key, value) for key, value in group.items() if isinstance(value, bool | str | NoneType))


def _name(optimizer: Optimizer) -> str:
    return type(optimizer).__name__


def _first_line(error: BaseException) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 200 else text[:197] + "..."


def _refusal(optimizer: Optimizer, verdict: Verdict, comm: Comm) -> str:
    return (
        f"{_name(optimizer)} takes a norm or another number over a whole parameter, and a PartialFC head on "
        f"{comm.shard_size} ranks is a shard on each: every rank would step by its own ({verdict.why}). Give the head "
        "an optimizer that looks at one number or one row at a time, such as SGD, AdamW or one of lightning_pfc.optim."
    )


def _split_message(optimizer: Optimizer) -> str:
    return (
        f"{_name(optimizer)} steps each parameter on one rank and sends it to the others, but every rank has other "
        "rows of a PartialFC head: they would be overwritten by its owner's shard. Give it the backbone's parameters "
        "alone, and the head's to an optimizer of their own; a head's state is split over the ranks already."
    )


def _unknown_message(optimizer: Optimizer, verdict: Verdict, comm: Comm) -> str:
    return (
        f"{_name(optimizer)} could not be tried on a small parameter ({verdict.why}). If it takes a norm or another "
        f"number over a whole parameter, it takes that of one shard of {comm.shard_size} here, and every rank steps "
        "by its own."
    )
