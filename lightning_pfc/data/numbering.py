"""Classes that keep the numbers which they have in a checkpoint, whatever the data call first now.

The other way round, ``head.match=names``, has rows of the head move to the numbers of the data. Here the rows stay: a
sum over the classes is taken in the order of before, so a run that goes on ends bit for bit where it would have.
Identities that have vanished keep their rows too, as classes without a picture. Where the identities are the same and
only their order differs, both come to the same, and rows stay with either word.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lightning_pfc.checkpoint.by_name import NEW, check_most_are_known, row_origins, unnamed_rows
from lightning_pfc.checkpoint.errors import CheckpointError
from lightning_pfc.checkpoint.identities import Identities, difference
from lightning_pfc.checkpoint.reader import CheckpointReader
from lightning_pfc.data.formats.texts import Texts
from lightning_pfc.data.images import Labels
from lightning_pfc.data.source import EvaluationSet, IdentityData, LabelledSet

_WAY_OUT = "Leave data.classes_of out, or give the checkpoint of these identities."


def numbered_as(data: IdentityData, path: str | os.PathLike[str]) -> IdentityData:
    """The same data, with the classes numbered as in a checkpoint.

    Identities that it knows have the number of their row; new ones come behind all of these, in the order of the data;
    those that have vanished are classes without a picture. Names are matched in a stream, at about 64 bytes a name.

    Args:
        data: opened; its pictures and their order stay.
        path: a checkpoint folder or file.

    Raises:
        CheckpointError: the checkpoint is none, has no names or a class without one, or hardly any of its names are in
            the data.
        ValueError: the data have no names, or are several sets.
    """
    if data.class_names is None or data.parts:
        raise ValueError(
            f"data.classes_of={path} needs one set of data with a name for each class; these "
            f"{'are several sets' if data.parts else 'have no names'}. Leave it out."
        )
    there = CheckpointReader(Path(path), check=False).identities
    if there is None:
        raise CheckpointError(f"data.classes_of={path} has no names of its classes. Leave it out.")
    if unnamed := unnamed_rows(there):
        raise CheckpointError(
            f"data.classes_of={path} has no name of class {unnamed[0]} (pfc-ckpt append without --names). Append it "
            "again with --names, or leave data.classes_of out."
        )
    found = row_origins(there, Identities.of(data.class_names))
    origins = found.numpy()
    known = check_most_are_known(f"data.classes_of={path}", found, there.count, _WAY_OUT)
    new = np.flatnonzero(origins == NEW)
    numbers = origins.copy()
    numbers[new] = there.count + np.arange(len(new))
    names = Texts([*there, *(data.class_names[int(row)] for row in new)])
    digest = hashlib.sha256(f"{data.fingerprint} {there.digest}".encode()).hexdigest()
    return dataclasses.replace(
        data,
        labels=_mapped(data.labels, numbers),
        num_classes=len(names),
        class_names=names,
        fingerprint=digest[: max(16, len(data.fingerprint))],
        validation=_renumbered(data.validation, numbers),
        test=_renumbered(data.test, numbers),
        description=f"{data.description}; numbered as in {path}: {known:,} classes as there, {len(new):,} new, "
        f"{there.count - known:,} without a picture",
    )


def numbered_if_same(data: IdentityData, path: str | os.PathLike[str]) -> IdentityData:
    """The same data, numbered as in a checkpoint of the same identities in another order; any other data as they are.

    Nothing is refused here: who goes on from the checkpoint says what is wrong with it.

    Args:
        data: opened; its pictures and their order stay.
        path: a checkpoint folder or file.
    """
    if data.class_names is None or data.parts or not Path(path).exists():
        return data
    try:
        there = CheckpointReader(Path(path), check=False).identities
        here = Identities.of(data.class_names)
        if there is None or there.count != here.count or difference(there, here) is None:
            return data
        return data if bool((row_origins(there, here) == NEW).any()) else numbered_as(data, path)
    except CheckpointError:
        return data


def _mapped(labels: Labels, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(N,) or (N, P) labels in new numbers; -1 stays what it is, none."""
    old = np.asarray(labels)
    return np.where(old < 0, old, numbers[old])


def _renumbered(sets: Mapping[str, EvaluationSet], numbers: npt.NDArray[np.int64]) -> dict[str, EvaluationSet]:
    return {
        name: dataclasses.replace(each, labels=_mapped(each.labels, numbers)) if isinstance(each, LabelledSet) else each
        for name, each in sets.items()
    }
