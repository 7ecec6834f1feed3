"""Several data sets at once, with one label space for all or one head for each."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_pfc.checked import checked
from lightning_pfc.data.images import ImageTable, Labels
from lightning_pfc.data.preprocessing import Preprocessing
from lightning_pfc.data.source import EvaluationSet, IdentityData, Names, Part, Source

_log = logging.getLogger(__name__)


class JoinedImages:
    """Tables one after the other, as one.

    Args:
        tables: of pictures of one size.

    Raises:
        ValueError: if their pictures differ in size.
    """

    def __init__(self, tables: Mapping[str, ImageTable]) -> None:
        shapes = {name: table.image_shape for name, table in tables.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"the data sets have images of different sizes, {shapes}: give all one image_size.")
        self.tables = list(tables.values())
        self.bounds = np.cumsum([0, *(len(table) for table in self.tables)])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every picture."""
        return self.tables[0].image_shape

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def fetch(self, index: NDArray[np.int64]) -> Tensor:
        """(b,) positions to (b, C, H, W) uint8 images."""
        table = np.searchsorted(self.bounds, index, side="right") - 1
        out = torch.empty((len(index), *self.image_shape), dtype=torch.uint8)
        for number in np.unique(table).tolist():
            rows = np.flatnonzero(table == number)
            out[torch.from_numpy(rows)] = self.tables[number].fetch(index[rows] - self.bounds[number])
        return out


class JoinedLabels:
    """Labels one after the other, each data set's behind those of the ones before it.

    Args:
        labels: of the data sets.
        num_classes: of the data sets.
    """

    def __init__(self, labels: list[Labels], num_classes: list[int]) -> None:
        self.labels = labels
        self.bounds = np.cumsum([0, *(len(each) for each in labels)])
        self.first_class = np.cumsum([0, *num_classes])

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        part = np.searchsorted(self.bounds, index, side="right") - 1
        out = np.empty(len(index), dtype=np.int64)
        for number in np.unique(part).tolist():
            rows = part == number
            out[rows] = self.labels[number][index[rows] - self.bounds[number]] + self.first_class[number]
        return out

    def __array__(self, dtype: type | None = None, copy: bool | None = None) -> NDArray[np.int64]:
        whole = [np.asarray(each) + first for each, first in zip(self.labels, self.first_class, strict=False)]
        return np.concatenate(whole).astype(dtype or np.int64)


class JoinedNames:
    """Names one after the other, each behind that of its data set: two sets may call other people by one name.

    Args:
        names: of the data sets.
    """

    def __init__(self, names: Mapping[str, Names]) -> None:
        self.prefixes = list(names)
        self.names = list(names.values())
        self.bounds = np.cumsum([0, *(len(each) for each in self.names)])

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def __getitem__(self, index: int) -> str:
        part = int(np.searchsorted(self.bounds, index, side="right")) - 1
        return f"{self.prefixes[part]}/{self.names[part][index - int(self.bounds[part])]}"


@checked
@dataclass(frozen=True, kw_only=True)
class Joint:
    """Several sources trained on at once.

    Evaluation sets keep their names, behind the name of their source: ``faces_test``.

    Attributes:
        sources: by name.
        labels: "joint" puts the classes behind each other, for one head over all of them. "separate" leaves each source
            its own, for one head each: batches are ``(images, labels, part)``, where ``part`` (b,) int64 numbers the
            sources in their order, and ``labels`` are those of the part.
    """

    sources: Mapping[str, Source]
    labels: Literal["joint", "separate"] = "joint"

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources must name at least one source.")
        if self.labels not in ("joint", "separate"):
            raise ValueError(f'labels={self.labels!r} must be "joint" or "separate".')

    def prepare(self) -> None:
        """Prepare all sources."""
        for source in self.sources.values():
            source.prepare()

    def open(self) -> IdentityData:
        """Open all sources.

        Raises:
            ValueError: if their images differ in size, or some are an open and some a closed set.
        """
        opened = {name: source.open() for name, source in self.sources.items()}
        tasks = {name: data.task for name, data in opened.items()}
        if len(set(tasks.values())) > 1:
            raise ValueError(f"the data sets must have one task, not {tasks}.")
        parts: list[Part] = []
        image = label = 0
        for name, data in opened.items():
            parts.append(Part(name, image, data.num_images, label, data.num_classes))
            image, label = image + data.num_images, label + data.num_classes
        every = list(opened.values())
        prints = " ".join(data.fingerprint for data in every) + self.labels
        return IdentityData(
            train=JoinedImages({name: data.train for name, data in opened.items()}),
            labels=JoinedLabels([data.labels for data in every], [data.num_classes for data in every]),
            num_classes=label,
            task=every[0].task,
            fingerprint=hashlib.sha256(prints.encode()).hexdigest()[:16],
            augment=every[0].augment,
            preprocessing=_one_preprocessing(opened),
            validation=_behind({name: data.validation for name, data in opened.items()}),
            test=_behind({name: data.test for name, data in opened.items()}),
            class_names=_names(opened),
            parts=tuple(parts),
            separate=self.labels == "separate",
            description="; ".join(data.description for data in every),
        )


def _names(opened: Mapping[str, IdentityData]) -> JoinedNames | None:
    found = {name: data.class_names for name, data in opened.items() if data.class_names is not None}
    return JoinedNames(found) if len(found) == len(opened) else None


def _one_preprocessing(opened: Mapping[str, IdentityData]) -> Preprocessing | None:
    """What the model remembers: "exact" goes with any other fit, since its pictures have the right size already."""
    records = {name: data.preprocessing for name, data in opened.items() if data.preprocessing is not None}
    fitted = {name: record for name, record in records.items() if record.fit != "exact"} or records
    if len({(record.fit, record.resampling, record.background) for record in fitted.values()}) > 1:
        fits = ", ".join(f"{name}: {_told(record)}" for name, record in fitted.items())
        _log.warning(
            "The data sets are fitted in different ways (%s). A model remembers one, that of the first: what judges it "
            "later fits pictures like that.",
            fits,
        )
    return next(iter(fitted.values()), None)


def _told(record: Preprocessing) -> str:
    over = "" if record.background == "none" else f", over {record.background}"
    return f"{record.fit}, {record.resampling}{over}"


def _behind(sets: Mapping[str, Mapping[str, EvaluationSet]]) -> dict[str, EvaluationSet]:
    return {f"{source}_{name}": found for source, named in sets.items() for name, found in named.items()}
