"""The pairs that a run gets most wrong, by name: a list to look through, which ``pfc-data convert --exclude`` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_pfc.data.formats.base import EncodedImages
from lightning_pfc.data.formats.subset import Subset
from lightning_pfc.data.tables import write_table
from lightning_pfc.data.verification import VerificationSet

_COUNT = 50
_COLUMNS = ("kind", "image", "class", "cosine", "other_class", "name", "other_name")


def write_hard_pairs(folder: Path, name: str, part: VerificationSet, scores: Any, embeddings: Tensor) -> Path | None:
    """Write ``hardest_pairs_NAME.tsv``, as ``pfc-data clean`` writes its list: a line a pair, the worst first.

    ``outlier`` is a pair of one identity with a low cosine; ``image`` is that of the two which is less like the others
    of the identity, as a position in the data set, and empty where there are no others. ``merge`` is a pair of two
    identities with a high cosine, perhaps one under two names; its ``image`` is empty.

    Args:
        folder: of the run.
        name: of the set.
        part: the set.
        scores: ``score``, ``same`` and ``pair`` of its pairs.
        embeddings: (N, D) of its images.

    Returns:
        The file; None where the pictures are no files.
    """
    encoded = getattr(part.images, "encoded", None)
    if not isinstance(encoded, EncodedImages):
        return None
    order = scores.score.argsort(stable=True)
    genuine = order[scores.same[order]][:_COUNT]
    impostors = order[~scores.same[order]].flip(0)[:_COUNT]
    unit = F.normalize(embeddings.nan_to_num(0.0).double())
    lines = []
    for kind, rows in (("outlier", genuine), ("merge", impostors)):
        for row in rows.tolist():
            pair = scores.pair[row]
            places = [int(part.pairs.first[pair]), int(part.pairs.second[pair])]
            suspect = _suspect(unit, part.identity, places) if kind == "outlier" else None
            places = places[::-1] if suspect == places[1] else places
            own, other = (str(encoded.identities[encoded.labels[place]]) for place in places)
            image = "" if suspect is None else str(_position(encoded, suspect))
            names = [encoded.name(place) for place in places]
            lines.append((kind, image, own, f"{float(scores.score[row]):.4f}", other, *names))
    path = folder / f"hardest_pairs_{name}.tsv"
    write_table(path, _COLUMNS, lines)
    return path


def _suspect(unit: Tensor, identity: Tensor, places: list[int]) -> int | None:
    """Which of two pictures is less like the others of their identity; None without others."""
    others = torch.tensor(
        [p for p in (identity == identity[places[0]]).nonzero().flatten().tolist() if p not in places]
    )
    if not len(others):
        return None
    return places[int(np.argmin([float((unit[others] @ unit[place]).mean()) for place in places]))]


def _position(encoded: EncodedImages, place: int) -> int:
    """In the data set that was given, of which this may be a part of a part."""
    if isinstance(encoded, Subset):
        return _position(encoded.images, int(encoded.rows[place]))
    return place
