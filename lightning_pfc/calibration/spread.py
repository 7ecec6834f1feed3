"""How far a rate of false accepts found on some identities lies from the rate on others.

Two things vary when other people are drawn. Each identity brings all its trials, so that one person who looks like many
moves the rate by many accepts at once; and each pair of identities is a matter of luck of its own. With ``e_ij`` the
accepts between two identities less those expected, and ``S_i`` their sum over j, the variance of the number of accepts
is ``sum_i S_i^2 - sum_ij e_ij^2`` (Aronow, Samii and Assenova, arXiv:1312.3398, for data of pairs: what two identities
share stands in both of their sums, once too often).

Drawing identities with replacement and counting a trial as often as both of its identities were drawn (the pigeonhole
bootstrap, Owen, Annals of Applied Statistics 1, 2007) gives the shape of the distribution, but counts the luck of a
pair three times: ``sum_i S_i^2 + sum_ij e_ij^2``. Where false accepts are rare that is nearly all of the variance, and
intervals come out 1.7 times too wide. So the replicates are drawn as there, and their spread is set to the variance
above.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lightning_pfc.calibration.trials import Floats, Ints, Trials, pair_keys


@dataclass(frozen=True, kw_only=True)
class Draws:
    """How the bootstrap draws.

    Attributes:
        level: Share of replicates within an interval.
        replicates: How many.
        seed: Of the draws.
    """

    level: float = 0.95
    replicates: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Accepts:
    """False accepts of a set at one threshold.

    Attributes:
        first: Identity of one side of each, (k,).
        second: Identity of the other side, (k,).
        weight: How much each counts, (k,): 1, but less where several in one search make one false alarm.
        trials: What they were found among.
    """

    first: Ints
    second: Ints
    weight: Floats
    trials: Trials

    @property
    def total(self) -> float:
        """Sum of the weights."""
        return float(self.weight.sum())

    @property
    def rate(self) -> float:
        """Accepts in a trial."""
        return self.total / self.trials.count


@dataclass(frozen=True)
class Variance:
    """Of the logarithm of a rate, by what varies.

    Attributes:
        identities: What each identity brings.
        pairs: The luck of each pair of identities.
        identity_count: Of the set; the first part shrinks with it.
        trial_count: Of the set; the second part shrinks with it.
        freedom: How many identities the variance was in effect estimated from (Satterthwaite): few where few make most
            of the accepts.
    """

    identities: float
    pairs: float
    identity_count: int
    trial_count: int
    freedom: float

    @property
    def whole(self) -> float:
        """Of a set like this one."""
        return self.identities + self.pairs

    def of_set(self, identity_count: int, trial_count: int) -> float:
        """Of a set of another size."""
        return self.identities * self.identity_count / identity_count + self.pairs * self.trial_count / trial_count

    def widening(self, level: float) -> float:
        """By how much an interval is wider because the variance is an estimate: Student's quantile over the normal."""
        z = NormalDist().inv_cdf((1 + level) / 2)
        return 1.0 + (z * z + 1.0) / (4.0 * self.freedom)


def variance(accepts: Accepts) -> Variance:
    """The variance of the logarithm of the rate of ``accepts``, from the set itself.

    Args:
        accepts: At least one.

    Returns:
        Both parts; their inverse sum is the number of independent false accepts that these are worth.
    """
    trials, rate, total = accepts.trials, accepts.rate, accepts.total
    touching = np.bincount(
        np.concatenate([accepts.first, accepts.second]),
        weights=np.concatenate([accepts.weight, accepts.weight]),
        minlength=trials.identities,
    )
    square = np.square(touching - rate * trials.touching())
    sums = float(square.sum())
    keys, place = np.unique(pair_keys(accepts.first, accepts.second, trials.identities), return_inverse=True)
    found = np.bincount(place, weights=accepts.weight)
    expected = rate * trials.between(keys // trials.identities, keys % trials.identities)
    squares = float((np.square(found) - 2 * found * expected).sum()) + rate * rate * trials.squares()
    return Variance(
        identities=max(0.0, sums - 2 * squares) / total**2,
        pairs=max(squares, 0.0) / total**2,
        identity_count=trials.identities,
        trial_count=trials.count,
        freedom=max(1.0, sums**2 / max(float(np.square(square).sum()), 1e-300)),
    )


def replicates(accepts: Accepts, count: int, rng: np.random.Generator) -> Floats:
    """Logarithms of the rate with identities drawn anew, less that of the set: (count,), by the bootstrap above."""
    trials = accepts.trials
    share = np.full(trials.identities, 1.0 / trials.identities)
    found = np.empty(count)
    for number in range(count):
        drawn = rng.multinomial(trials.identities, share).astype(np.float64)
        hits = float((drawn[accepts.first] * drawn[accepts.second] * accepts.weight).sum())
        found[number] = max(hits, 0.5) / max(trials.weighted(drawn), 1.0)
    return np.log(found / accepts.rate)


def scaled(draws: Floats, wanted: float) -> Floats:
    """Draws with their median at zero and the variance that is wanted."""
    centred = draws - np.median(draws)
    have = float(np.square(centred).mean())
    return centred * np.sqrt(wanted / have) if have > 0 else centred


def of_pairs(false_accepts: float, trial_count: int, count: int, rng: np.random.Generator) -> Floats:
    """Logarithms of the rate with pairs drawn anew, as if they were independent: (count,)."""
    rate = false_accepts / trial_count
    hits = rng.binomial(trial_count, min(rate, 1.0), count)
    return np.log(np.maximum(hits, 0.5) / false_accepts)


def quantiles(values: Floats, level: float) -> tuple[float, float]:
    """Both ends of the middle ``level`` of some values."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
