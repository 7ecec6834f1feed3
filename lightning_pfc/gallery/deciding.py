"""From scores to decisions: a threshold of the model, by its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_pfc.deploy.recogniser import Recogniser
from lightning_pfc.gallery.records import Match
from lightning_pfc.runs.thresholds import Threshold


@dataclass(frozen=True)
class Decision:
    """A match with what is made of it; ``same`` and the rest are None where the model was never calibrated."""

    identity: str
    score: float
    picture: int
    same: bool | None
    threshold: str | None
    rate: float | None


def search_threshold(recogniser: Recogniser, name: str | None) -> Threshold | None:
    """The threshold of a name; without one the first for identification, else the first for verification, or None.

    Raises:
        NotCalibratedError: if there is none of that name.
    """
    if name is not None:
        return recogniser.threshold(name, recogniser.thresholds.get_named(name).kind)  # of either kind
    return recogniser.threshold(None, "identification") or recogniser.threshold(None, "verification")


def decide(matches: Sequence[Match], recogniser: Recogniser, name: str | None = None) -> list[Decision]:
    """What a threshold makes of the answers of a search."""
    threshold = search_threshold(recogniser, name)
    return [
        Decision(
            match.identity,
            match.score,
            match.picture,
            None if threshold is None else threshold.accepts(match.score),
            None if threshold is None else threshold.name,
            None if threshold is None else threshold.rate,
        )
        for match in matches
    ]
