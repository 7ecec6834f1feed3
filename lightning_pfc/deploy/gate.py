"""What a reduced precision must show before it is kept: real pictures recognised as well, in less time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
from torch import Tensor

from lightning_pfc.data.preprocessing import Preprocessing
from lightning_pfc.data.verification import VerificationSet
from lightning_pfc.deploy.engines import Engine, Floats
from lightning_pfc.deploy.errors import ExportError, GateError
from lightning_pfc.deploy.figures import set_scores
from lightning_pfc.metrics.functional import tar_at_far
from lightning_pfc.metrics.verification import rate_name

BATCHES = (1, 16)
LEAST_GAIN = 0.95  # of the time of float32: what differs by less is as fast
_FARS = (1e-3, 1e-2)
_ROUNDS, _WARM_UP, _SECONDS = 15, 3, 20.0


@dataclass(frozen=True)
class Judgement:
    """What was measured.

    Attributes:
        accept_rates: By set: the rate's name, the true accept rate in float32 and in the reduced precision.
        milliseconds: By batch size: of a call in float32 and in the reduced precision, medians of calls in turn.
        max_loss: How much of a true accept rate may be lost.
    """

    accept_rates: Mapping[str, tuple[str, float, float]]
    milliseconds: Mapping[int, tuple[float, float]]
    max_loss: float

    @property
    def loses_too_much(self) -> bool:
        """Whether some set loses more than is allowed."""
        return any(before - after > self.max_loss for _, before, after in self.accept_rates.values())

    @property
    def is_faster(self) -> bool:
        """Whether calls of some size take less time, and of no size more."""
        gains = [after / before for before, after in self.milliseconds.values()]
        return min(gains) < LEAST_GAIN and max(gains) * LEAST_GAIN < 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "accept_rates": {name: list(values) for name, values in self.accept_rates.items()},
            "milliseconds": {str(size): list(values) for size, values in self.milliseconds.items()},
            "max_loss": self.max_loss,
        }

    def figures(self) -> str:
        """All of it in words."""
        rates = [
            f"true accept rate at FAR {far} on {name} {100 * before:.2f} -> {100 * after:.2f} %"
            for name, (far, before, after) in self.accept_rates.items()
        ]
        times = [
            f"batch of {size} {before:.1f} -> {after:.1f} ms" for size, (before, after) in self.milliseconds.items()
        ]
        return "; ".join([*rates, *times])


def resolved_rates(sets: Mapping[str, VerificationSet]) -> dict[str, float]:
    """By set, the false accept rate to compare at, 0.1 % or (of few pairs) 1 %; without sets that resolve neither.

    Raises:
        ExportError: no set resolves one.
    """
    found = {}
    for name, part in sets.items():
        impostors = int((~part.pairs.same).sum())
        far = next((far for far in _FARS if far * impostors >= 10), None)
        if far is not None and bool(part.pairs.same.any()):
            found[name] = far
    if not found:
        raise ExportError(
            "a reduced precision is kept only if it recognises as well on real pictures, and there are none with "
            "identities here: give --images FOLDER with a sub-folder for each of at least 20 identities"
        )
    return found


def judge_times(float32: Engine, reduced: Engine, images: Floats, max_loss: float) -> Judgement:
    """Compare the time of calls in the same engine: seconds, where what a precision recognises takes minutes.

    Args:
        float32: The reference.
        reduced: What is to be kept or not.
        images: (n, C, H, W) float32 real pictures.
        max_loss: See :class:`Judgement`.
    """
    times = {size: in_turn([float32, reduced], np.resize(images, (size, *images.shape[1:]))) for size in BATCHES}
    return Judgement({}, {size: (found[0], found[1]) for size, found in times.items()}, max_loss)


def judge_rates(
    reduced: Engine,
    scores: Mapping[str, Tensor],
    sets: Mapping[str, VerificationSet],
    preprocessing: Preprocessing,
    times: Judgement,
) -> Judgement:
    """Compare what is recognised.

    Args:
        reduced: What is to be kept or not.
        scores: Cosines of the reference, (P,) for each set.
        sets: Verification sets of real pictures.
        preprocessing: Of the model.
        times: That of :func:`judge_times`.

    Returns:
        All figures.

    Raises:
        ExportError: see :func:`resolved_rates`.
    """
    rates = {}
    for name, far in resolved_rates(sets).items():
        same = sets[name].pairs.same
        before = tar_at_far(scores[name], same, far).tar
        after = tar_at_far(set_scores(reduced, sets[name], preprocessing), same, far).tar
        rates[name] = (rate_name(far), before, after)
    return replace(times, accept_rates=rates)


def refuse(judgement: Judgement, precision: str, engine: str) -> None:
    """Raise unless it is to be kept.

    Raises:
        GateError: it loses too much, or is not faster; has the figures.
    """
    reasons = []
    if judgement.loses_too_much:
        reasons.append(f"it loses more than --max-loss {judgement.max_loss:g} of the true accept rate")
    if not judgement.is_faster:
        reasons.append(f"it is not faster in {engine}")
    if reasons:
        raise GateError(
            f"precision={precision} is not kept: {' and '.join(reasons)} ({judgement.figures()}). Nothing was written; "
            "export float32, or try another --engine"
        )


def in_turn(engines: Sequence[Engine], images: Floats) -> list[float]:
    """Milliseconds of a call of each engine: medians of calls that take turns, so that other work hits all alike."""
    times: list[list[float]] = [[] for _ in engines]
    started = time.perf_counter()
    for number in range(_ROUNDS + _WARM_UP):
        for place, engine in enumerate(engines):
            before = time.perf_counter()
            engine(images)
            if number >= _WARM_UP:
                times[place].append(1000.0 * (time.perf_counter() - before))
        if number > _WARM_UP + 2 and time.perf_counter() - started > _SECONDS:
            break
    return [median(values) for values in times]
