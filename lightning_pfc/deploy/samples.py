"""Real pictures to check an export on: of the run, or of a folder that the user names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_pfc.data.preprocessing import Preprocessing
from lightning_pfc.data.source import IdentityData, LabelledSet
from lightning_pfc.data.verification import FOLDS, Pairs, VerificationSet, make_pairs
from lightning_pfc.deploy.engines import Floats
from lightning_pfc.deploy.errors import ExportError
from lightning_pfc.runs.run_folder import Run, spread

MOST_PICTURES = 20_000


@dataclass(frozen=True)
class Samples:
    """Pictures of a model's own kind.

    Attributes:
        images: An image table, to be checked on and (int8) calibrated on.
        sets: Verification sets by name; empty where the pictures have no identities.
        source: What they are, in words without a path.
        data: The run's data; None for a folder.
    """

    images: Any
    sets: Mapping[str, VerificationSet]
    source: str
    data: IdentityData | None = None

    def floats(self, count: int, preprocessing: Preprocessing) -> Floats:
        """(n, C, H, W) float32: some of the pictures as the network takes them."""
        found: Floats = preprocessing.tensor(spread(self.images, count)).contiguous().numpy()
        return found


def open_samples(run: Run, preprocessing: Preprocessing, images: str | os.PathLike[str] | None) -> Samples:
    """The pictures of a run, or those of a folder in their place.

    Raises:
        ExportError: there are none.
    """
    return _of_run(run) if images is None else _of_folder(Path(images), preprocessing)


def _of_run(run: Run) -> Samples:
    data: IdentityData = run.data
    sets = {**data.validation, **data.test}
    verification = {name: part for name, part in sets.items() if isinstance(part, VerificationSet)}
    if not verification:
        labelled = [part for part in sets.values() if isinstance(part, LabelledSet)]
        table, labels = (labelled[-1].images, labelled[-1].labels) if labelled else (data.train, data.labels)
        verification = _by_labels("labelled", table, np.asarray(labels[np.arange(min(len(table), MOST_PICTURES))]))
    return Samples(data.train, verification, Path(data.description.split(":")[0]).name or "the run's data", data)


def _of_folder(folder: Path, preprocessing: Preprocessing) -> Samples:
    from lightning_pfc.data.formats import DecodedImages, open_images

    try:
        encoded = open_images(folder)
    except (FileNotFoundError, ValueError) as error:
        raise ExportError(f"--images: {error}", folder) from error
    table = DecodedImages(encoded, preprocessing=preprocessing)
    sets = _by_labels(folder.name, table, np.asarray(encoded.labels[:MOST_PICTURES]))
    return Samples(table, sets, folder.name)


def _by_labels(name: str, table: Any, labels: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, VerificationSet]:
    """A verification set from labels, where they make one."""
    counts = np.bincount(labels) if len(labels) else np.zeros(1)
    if (counts > 0).sum() < 2 * FOLDS or not (counts > 1).any():
        return {}
    pairs = make_pairs(labels, np.arange(len(labels)), seed=0, impostors=200_000)
    return {name: VerificationSet(table, pairs, torch.from_numpy(labels))}


def limited(part: VerificationSet) -> VerificationSet:
    """A set of which no more than ``MOST_PICTURES`` pictures are used."""
    if len(part.images) <= MOST_PICTURES:
        return part
    pairs = part.pairs
    keep = (pairs.first < MOST_PICTURES) & (pairs.second < MOST_PICTURES)
    kept = Pairs(pairs.first[keep], pairs.second[keep], pairs.same[keep], pairs.fold[keep])
    return VerificationSet(part.images, kept, part.identity, part.description)
