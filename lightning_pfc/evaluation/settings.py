"""What all protocols of an evaluation share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_pfc.checked import checked
from lightning_pfc.data.formats.patterns import Paths
from lightning_pfc.data.pictures.decoding import MAX_PIXELS
from lightning_pfc.data.pictures.modes import Background
from lightning_pfc.data.preprocessing import Fit, Flip, Resampling
from lightning_pfc.ignored import warn_ignored
from lightning_pfc.metrics.functional.checks import check_rate


@checked
@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What all protocols share.

    Attributes:
        flip: ``"sum"`` adds the embedding of the mirror image, as the InsightFace protocol does, ``"none"`` does not;
            None is what the model says: it sums if it was trained on mirrored pictures.
        fit, resampling, background: What is done to pictures of another size, and to transparent ones, in place of
            what the model says, see
            :class:`~lightning_pfc.data.preprocessing.Preprocessing`.
        max_pixels: Bound of what is decoded, see :func:`~lightning_pfc.data.pictures.decoding.decode`.
        allow: Folders besides a set's own that links and paths in it may lead into.
        fars: False accept rates.
        ranks: Ranks of the CMC.
        fpirs: False positive identification rates.
        batch_size: Pictures at once.
        num_workers: Processes that decode pictures.
        level: Of confidence of the intervals.
        replicates: 0 makes no intervals; how many has no effect any more, since nothing is drawn for them.
        seed: Of the galleries that ``one_shot`` draws.
    """

    flip: Flip | None = None
    fit: Fit | None = None
    resampling: Resampling | None = None
    background: Background | None = None
    max_pixels: int = MAX_PIXELS
    allow: Paths = ()
    fars: Sequence[float] = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
    ranks: Sequence[int] = (1, 5, 10)
    fpirs: Sequence[float] = (0.1, 0.01)
    batch_size: int = 64
    num_workers: int = 0
    level: float = 0.95
    replicates: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("num_workers", 0), ("max_pixels", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"settings.{name}={getattr(self, name)} must be at least {least}")
        if not 0.0 < self.level < 1.0:
            raise ValueError(f"settings.level={self.level} must lie in (0, 1), for example 0.95")
        for rate in [*self.fars, *self.fpirs]:
            check_rate(rate, "a rate of settings.fars or settings.fpirs")
        if low := [k for k in self.ranks if k < 1]:
            raise ValueError(f"settings.ranks holds {low[0]}; ranks count from 1")
        if self.replicates < 0:
            raise ValueError(
                f"replicates={self.replicates} must be 0, which makes no intervals, or 1000, for intervals"
            )
        if self.replicates not in (0, 1000):
            warn_ignored(f"replicates={self.replicates}", "nothing is drawn for intervals; 0 leaves them out", 4)
