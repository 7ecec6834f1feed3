"""What a model does on verification sets: for the model card, and for the gate of reduced precisions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import trange

from lightning_pfc.data.preprocessing import Preprocessing
from lightning_pfc.data.verification import VerificationSet
from lightning_pfc.deploy.engines import Engine
from lightning_pfc.evaluation.intervals import tar_interval
from lightning_pfc.metrics.functional import cosine_from_squared_distance, pair_squared_distances, tar_at_far
from lightning_pfc.metrics.verification import rate_name

FARS = (1e-2, 1e-3)
BATCH = 64
BINS = 100


class Figure(NamedTuple):
    """A true accept rate.

    Attributes:
        name: ``SET/tar@far=RATE``.
        value: The rate.
        low, high: 95 % interval by identity.
    """

    name: str
    value: float
    low: float
    high: float


def embed_set(engine: Engine, part: VerificationSet, preprocessing: Preprocessing) -> Tensor:
    """(N, D) embeddings of the pictures that a set's pairs use; rows that no pair uses are zero."""
    used = torch.unique(torch.cat([part.pairs.first, part.pairs.second])).numpy()
    rows: Tensor | None = None
    for start in trange(0, len(used), BATCH, desc="measuring", unit_scale=BATCH, unit=" pictures", disable=None):
        places = used[start : start + BATCH].astype(np.int64)
        images = preprocessing.tensor(part.images.fetch(places)).contiguous().numpy()
        found = torch.from_numpy(engine(images))
        if rows is None:
            rows = torch.zeros(int(used.max()) + 1, found.shape[1])
        rows[places] = found
    assert rows is not None
    return rows


def set_scores(engine: Engine, part: VerificationSet, preprocessing: Preprocessing) -> Tensor:
    """(P,) float64 cosines of a set's pairs."""
    rows = embed_set(engine, part, preprocessing)
    return cosine_from_squared_distance(pair_squared_distances(rows, part.pairs.first, part.pairs.second))


def figures_of(scores: Tensor, name: str, part: VerificationSet) -> list[Figure]:
    """True accept rates of a set at the rates that its pairs resolve, with intervals by identity."""
    pairs = part.pairs
    sides = (part.identity[pairs.first], part.identity[pairs.second])
    impostors = int((~pairs.same).sum())
    found = []
    for far in FARS:
        if far * impostors < 10 or not bool(pairs.same.any()):
            continue
        point = tar_at_far(scores, pairs.same, far)
        interval = tar_interval(scores, pairs.same, far, sides)
        found.append(Figure(f"{name}/tar@far={rate_name(far)}", point.tar, interval.low, interval.high))
    return found


def histogram(scores: Tensor, name: str, part: VerificationSet) -> Mapping[str, Any]:
    """How many pairs of a set have which score: counts in 100 equal bins over [-1, 1], for one identity and for two."""
    counts = {
        kind: torch.histc(scores[part.pairs.same == same].clamp(-1, 1), BINS, -1.0, 1.0).long().tolist()
        for kind, same in (("genuine", True), ("impostor", False))
    }
    return {"set": name, "low": -1.0, "high": 1.0, **counts}


def as_dict(figures: list[Figure]) -> Mapping[str, Any]:
    """By name, for JSON."""
    return {figure.name: {"value": figure.value, "interval": [figure.low, figure.high]} for figure in figures}
