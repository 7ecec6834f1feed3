"""What every kind of data looks like to the data module: a source is prepared once, then opened on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from lightning_pfc.data.augment import Augment
from lightning_pfc.data.images import ImageTable, Labels
from lightning_pfc.data.preprocessing import Preprocessing
from lightning_pfc.data.verification import VerificationSet

Task = Literal["open", "closed"]


@dataclass(frozen=True)
class LabelledSet:
    """Pictures of the training classes, to classify.

    Attributes:
        images: the pictures.
        labels: (N,) int64 class of each.
        description: one line for tables and logs.
    """

    images: ImageTable
    labels: Labels
    description: str = ""


EvaluationSet = VerificationSet | LabelledSet


class Names(Protocol):
    """A name per class."""

    def __len__(self) -> int:
        """Number of classes."""

    def __getitem__(self, index: int, /) -> str:
        """The name of a class."""


@dataclass(frozen=True)
class Part:
    """One of several data sets that are trained on at once.

    Attributes:
        name: of the data set.
        first_image, num_images: its images within the training set.
        first_class, num_classes: its classes within the joint label space.
    """

    name: str
    first_image: int
    num_images: int
    first_class: int
    num_classes: int


@dataclass(frozen=True, kw_only=True)
class IdentityData:
    """An opened source. The numbers of classes and images are those of the data.

    Attributes:
        train: the training pictures.
        labels: (N,) int64 class of each, in ``[0, num_classes)``.
        num_classes: number of training classes.
        task: "open" when evaluation shows identities that were never trained on, "closed" when it classifies.
        validation, test: named evaluation sets, of one kind each.
        fingerprint: changes when the data do; ranks compare it, and two runs may.
        augment: what suits these pictures in training, unless the user says otherwise.
        preprocessing: how the pictures are made from files, which a model that is trained on them remembers; pictures
            that are no files need none.
        class_names: a name per class, where there are names.
        parts: the data sets that these are made of, where they are several.
        separate: whether batches carry each data set's own labels, for one head each, and the number of its part.
        description: one line for tables and logs.
    """

    train: ImageTable
    labels: Labels
    num_classes: int
    task: Task
    fingerprint: str
    augment: Augment
    preprocessing: Preprocessing | None = None
    validation: Mapping[str, EvaluationSet] = field(default_factory=dict)
    test: Mapping[str, EvaluationSet] = field(default_factory=dict)
    class_names: Names | None = None
    parts: tuple[Part, ...] = ()
    separate: bool = False
    description: str = ""

    @property
    def num_images(self) -> int:
        """Number of training images."""
        return len(self.train)


class Source(Protocol):
    """A kind of data, described but not yet opened."""

    def prepare(self) -> None:
        """Make what opening needs (downloads, caches). Runs on one process per node; must not set state."""

    def open(self) -> IdentityData:
        """Open the data. Runs on every rank and gives the same on each."""
