"""Real pictures to check an export on: of the run, or of a folder that the user names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_pfc.data.counter import stream
from lightning_pfc.data.preprocessing import Preprocessing
from lightning_pfc.data.source import IdentityData, LabelledSet
from lightning_pfc.data.verification import FOLDS, Pairs, VerificationSet, make_pairs
from lightning_pfc.deploy.engines import Floats
from lightning_pfc.deploy.errors import ExportError
from lightning_pfc.runs.run_folder import Run, spread

MOST_PICTURES = 5_000


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


def open_samples(
    run: Run, preprocessing: Preprocessing, images: str | os.PathLike[str] | None, most: int = MOST_PICTURES
) -> Samples:
    """The pictures of a run, or those of a folder in their place; ``most`` of each verification set.

    Raises:
        ExportError: there are none.
    """
    return _of_run(run, most) if images is None else samples_of_folder(Path(images), preprocessing, most)


def _of_run(run: Run, most: int) -> Samples:
    data: IdentityData = run.data
    sets = {**data.validation, **data.test}
    verification = {name: part for name, part in sets.items() if isinstance(part, VerificationSet)}
    if not verification:
        labelled = [part for part in sets.values() if isinstance(part, LabelledSet)]
        table, labels = (labelled[-1].images, labelled[-1].labels) if labelled else (data.train, data.labels)
        verification = _by_labels("labelled", table, np.asarray(labels[np.arange(min(len(table), most))]))
    name = Path(data.description.split(":")[0]).name or "the run's data"
    return Samples(data.train, {key: limited(part, most) for key, part in verification.items()}, name, data)


def samples_of_folder(folder: Path, preprocessing: Preprocessing, most: int) -> Samples:
    """The pictures of a folder with a sub-folder for each identity."""
    from lightning_pfc.data.formats import DecodedImages, open_images

    try:
        encoded = open_images(folder)
    except (FileNotFoundError, ValueError) as error:
        raise ExportError(f"--images: {error}", folder) from error
    table = DecodedImages(encoded, preprocessing=preprocessing)
    sets = _by_labels(folder.name, table, np.asarray(encoded.labels[:most]))
    return Samples(table, sets, folder.name)


def _by_labels(name: str, table: Any, labels: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, VerificationSet]:
    """A verification set from labels, where they make one."""
    counts = np.bincount(labels) if len(labels) else np.zeros(1)
    if (counts > 0).sum() < 2 * FOLDS or not (counts > 1).any():
        return {}
    pairs = make_pairs(labels, np.arange(len(labels)), seed=0, impostors=200_000)
    return {name: VerificationSet(table, pairs, torch.from_numpy(labels))}


def limited(part: VerificationSet, most: int) -> VerificationSet:
    """A set of which no more than ``most`` pictures are used: all those of identities that a hash picks."""
    if len(part.images) <= most:
        return part
    names, number = torch.unique(part.identity, return_inverse=True)
    order = np.argsort(stream(0, 41, np.arange(len(names))), kind="stable")
    sizes = torch.bincount(number)[order]
    chosen = torch.zeros(len(names), dtype=torch.bool)
    chosen[order[: int((sizes.cumsum(0) <= most).sum())]] = True
    pairs, kept = part.pairs, chosen[number]
    keep = kept[pairs.first] & kept[pairs.second]
    fewer = Pairs(pairs.first[keep], pairs.second[keep], pairs.same[keep], pairs.fold[keep])
    return VerificationSet(part.images, fewer, part.identity, part.description)
