"""The threshold for a false accept rate of pairs, and what it does on other identities."""

from __future__ import annotations

import math
from typing import Any, Literal

from lightning_pfc.calibration.material import Material
from lightning_pfc.calibration.pair_scores import PairScores
from lightning_pfc.calibration.spread import (
    Draws,
    quantiles,
)
from lightning_pfc.metrics.verification import rate_name
from lightning_pfc.runs.thresholds import Threshold

LEAST_FALSE_ACCEPTS = 30


class UnresolvedRateError(ValueError):
    """A set is too small for a rate; the message says how large it must be, and which rate it resolves."""


def choose(
    material: Material, far: float, *, flip: Literal["none", "sum"], model: str, draws: Draws | None = None
) -> Threshold:
    """The loosest threshold that accepts at most the share ``far`` of a set's impostor pairs.

    Args:
        material: The set; identities in it must not have been trained on.
        far: The rate, in (0, 1).
        flip: How the embeddings were made.
        model: Fingerprint of the weights.
        draws: Of the bootstrap.

    Returns:
        The threshold, with the interval in which the rate of another set of this size lies.

    Raises:
        UnresolvedRateError: fewer than 30 impostor pairs would be accepted.
        ValueError: the set makes no genuine or no impostor pair.
    """
    draws = draws or Draws()
    pairs = PairScores.of(material)
    if far * pairs.impostors < LEAST_FALSE_ACCEPTS:
        raise UnresolvedRateError(_too_few(material.name, far, pairs.impostors))
    value, accept_rate, false_accepts = pairs.at(far)
    if false_accepts < LEAST_FALSE_ACCEPTS:
        raise UnresolvedRateError(
            f"calibrate.far={rate_name(far)}: so many impostor pairs of {material.name!r} score exactly the same that "
            f"{false_accepts} of them or far too many are accepted; are pictures there twice under other names?"
        )
    own, other = pairs.deviations(value, draws, None), pairs.deviations(value, draws, None, salt=1)
    low, high = quantiles(other - own, draws.level)
    ends = [pairs.at(min(far * math.exp(-end), 0.5))[0] for end in quantiles(own, draws.level)]
    rate = false_accepts / pairs.impostors
    return Threshold(
        name=f"far={rate_name(far)}",
        kind="verification",
        value=value,
        rate=far,
        interval=(rate * math.exp(low), min(1.0, rate * math.exp(high))),
        level=draws.level,
        value_interval=(min(ends), max(ends)),
        accept_rate=accept_rate,
        accept_interval=pairs.accept_interval(value, draws),
        flip=flip,
        unit="identities" if material.unit == "identities" else "pairs",
        false_accepts=false_accepts,
        trials=pairs.impostors,
        identities=pairs.identities,
        chosen_on=material.name,
        model=model,
    )


def independent_accepts(material: Material, threshold: Threshold) -> float:
    """How many independent false accepts those of a set are worth: few identities may make many of them."""
    return 1.0 / PairScores.of(material).variance(threshold.value).whole


def check(chosen_on: Material, threshold: Threshold, second: Material, draws: Draws | None = None) -> dict[str, Any]:
    """What a threshold does on a second set, beside what was to be expected there.

    Args:
        chosen_on: The set that it was chosen on.
        threshold: What was chosen.
        second: Another set, of other identities.
        draws: Of the bootstrap.

    Returns:
        ``rate``, ``false_accepts``, ``trials``, ``identities``, ``accept_rate``, ``accept_interval``, ``expected`` (the
        interval of the rate for a set of that size) and ``inside``.
    """
    draws = draws or Draws()
    first, other = PairScores.of(chosen_on), PairScores.of(second)
    false_accepts, accept_rate = other.accepted(threshold.value)
    own = first.deviations(threshold.value, draws, None)
    theirs = first.deviations(threshold.value, draws, other, salt=1)
    low, high = quantiles(theirs - own, draws.level)
    rate = threshold.false_accepts / threshold.trials
    expected = (rate * math.exp(low), min(1.0, rate * math.exp(high)))
    found = false_accepts / other.impostors
    return {
        "rate": found,
        "false_accepts": false_accepts,
        "trials": other.impostors,
        "identities": other.identities,
        "accept_rate": accept_rate,
        "accept_interval": list(other.accept_interval(threshold.value, draws)),
        "expected": list(expected),
        "inside": expected[0] <= found <= expected[1],
    }


def _too_few(name: str, far: float, impostors: int) -> str:
    needed = math.ceil(LEAST_FALSE_ACCEPTS / far)
    pictures = math.ceil((1 + math.sqrt(1 + 8 * needed)) / 2)
    resolved = LEAST_FALSE_ACCEPTS / impostors if impostors else 1.0
    way_out = f"or ask for calibrate.far={_rounded_up(resolved)} or more" if resolved < 0.5 else "or a larger set"
    return (
        f"calibrate.far={rate_name(far)}: the {impostors:,} impostor pairs of {name!r} would hold "
        f"{far * impostors:.1f} false accepts, and a threshold needs about {LEAST_FALSE_ACCEPTS}. Give {needed:,} "
        f"impostor pairs (all pairs of some {pictures:,} pictures), {way_out}."
    )


def _rounded_up(rate: float) -> str:
    digits = 10.0 ** (math.floor(math.log10(rate)) - 1)
    return rate_name(math.ceil(rate / digits) * digits)
