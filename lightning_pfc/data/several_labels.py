"""Several labels a picture: lists of any length as one table (N, P), -1 for none, as heads take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from lightning_pfc.checked import checked
from lightning_pfc.data.source import IdentityData


def check_labels(data: IdentityData, sampler: object, mix: object) -> None:
    """Whether pictures with several labels are used as they can be; nothing to do where each has one.

    Args:
        data: its ``labels`` are (N,), or (N, P) with -1 for none.
        sampler: of the data module; None for its own.
        mix: of the data module; None for none.

    Raises:
        ValueError: for what wants one label a picture, and for rows without any.
    """
    if getattr(data.labels, "ndim", 1) == 1:
        return
    labels = np.asarray(data.labels)
    bad = labels.ndim != 2 or bool(((labels < -1) | (labels >= data.num_classes)).any() or (labels < 0).all(1).any())
    if bad:
        raise ValueError(
            f"labels of shape {labels.shape} must be (N, P) with ids in [0, num_classes={data.num_classes}), -1 for "
            "none, and at least one in each row; pad_labels makes them of lists."
        )
    wants_one = [("mix", mix), ("sampler", sampler if getattr(sampler, "groups_by_label", False) else None)]
    for name, value in wants_one:
        if value is not None:
            raise ValueError(
                f"{name}={value} wants one label a picture, and labels have shape {labels.shape}; leave it out."
            )
    if data.parts:
        raise ValueError(f"labels of shape {labels.shape} are of one data set; join them before, with one numbering.")


def pad_labels(labels: Sequence[Sequence[int]], width: int | None = None) -> Tensor:
    """Lists of class ids as one tensor.

    Args:
        labels: the ids of each sample, at least one.
        width: P; None takes that of the longest list. Batches of several ranks need the same, so give it there.

    Returns:
        (N, P) int64, -1 where there are no more.

    Raises:
        ValueError: for a sample without an id, with more than ``width``, or with an id below 0.
    """
    longest = max((len(own) for own in labels), default=0)
    width = longest if width is None else width
    for place, own in enumerate(labels):
        if not 0 < len(own) <= width:
            raise ValueError(
                f"labels[{place}] has {len(own)} class ids; a sample needs at least one and at most width={width}: "
                "leave it out, or give a larger width."
            )
        if min(own) < 0:
            raise ValueError(f"labels[{place}]={list(own)} has an id below 0; -1 is what none is padded with.")
    out = torch.full((len(labels), width), -1, dtype=torch.int64)
    for place, own in enumerate(labels):
        out[place, : len(own)] = torch.tensor(list(own))
    return out


@checked
class CollateSeveralLabels:
    """What ``DataLoader(collate_fn=)`` makes of samples ``(picture, class ids)``: pictures (b, ...) and labels (b, P).

    Args:
        width: P, the most ids that a sample has; the same on every rank.
    """

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, samples: Sequence[tuple[Any, Sequence[int]]]) -> tuple[Any, Tensor]:
        """One batch."""
        pictures, labels = zip(*samples, strict=True)
        return default_collate(list(pictures)), pad_labels(labels, self.width)
