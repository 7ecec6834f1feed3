"""What a recogniser answers."""

from __future__ import annotations

from typing import NamedTuple


class Comparison(NamedTuple):
    """Two pictures compared.

    Attributes:
        score: Cosine of their embeddings.
        same: Whether it is above the threshold; None where the model was never calibrated.
        far: False accept rate that the threshold stands for; None likewise.
    """

    score: float
    same: bool | None
    far: float | None


class Match(NamedTuple):
    """One answer of a search.

    Attributes:
        identity: Name of the class.
        score: Cosine to it (its logit, for a loss without normalisation).
        same: Whether it is above the threshold; None where there is none for this gallery.
    """

    identity: str
    score: float
    same: bool | None
