"""One's own images: a folder with a sub-folder per identity, or any other format of labelled images."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from lightning_pfc.checked import checked
from lightning_pfc.data.augment import RandomFlip
from lightning_pfc.data.counter import stream
from lightning_pfc.data.entries import folders_in
from lightning_pfc.data.formats.base import EncodedImages
from lightning_pfc.data.formats.decoded import DecodedImages
from lightning_pfc.data.formats.folder import FolderImages
from lightning_pfc.data.formats.patterns import Paths
from lightning_pfc.data.formats.readers import guess_format, open_images
from lightning_pfc.data.formats.subset import Subset
from lightning_pfc.data.pictures.decoding import MAX_PIXELS
from lightning_pfc.data.pictures.modes import Background
from lightning_pfc.data.preprocessing import Fit, Preprocessing, Resampling
from lightning_pfc.data.source import EvaluationSet, IdentityData, LabelledSet, Task
from lightning_pfc.data.verification import FOLDS, LEAST, VerificationSet, make_pairs
from lightning_pfc.ignored import warn_idle_fields
from lightning_pfc.storage.enclosure import Enclosure

_log = logging.getLogger(__name__)

_CHUNK = 64


@checked
@dataclass(frozen=True, kw_only=True)
class Files:
    """Labelled images on disk, in any format of :mod:`lightning_pfc.data.formats`.

    That is a folder with a sub-folder of images per identity, RecordIO, a list, Parquet, WebDataset shards, or a
    Hugging Face data set.

    Attributes:
        path: the training images.
        format: of all paths here; by default what each path looks like.
        options: of the reader of that format.
        task: "open" verifies identities that are not trained on, "closed" classifies images into the trained classes.
        validation, test: paths of evaluation images, in place of a share of the training images.
        val_share, test_share: what is set aside of the training images: a share of the identities ("open", four at
            least) or of the images of each class ("closed"; every class keeps one to train on). By a hash, so the split
            never changes.
        image_size: edge of the images in pixels, or (height, width); by default that of the first image.
        channels: 3 for RGB, 1 for grey.
        fit, resampling, background: what is done to images of another size, and to transparent ones, see
            :class:`~lightning_pfc.data.preprocessing.Preprocessing`.
        max_pixels: bound of what is decoded, see :func:`~lightning_pfc.data.pictures.decoding.decode`.
        on_broken: a broken image stops the run ("raise") or is replaced by another of its class and counted ("skip").
        max_broken: share of the images that may be skipped; one more stops the run.
        check: how many images, spread evenly, are decoded before training starts, so that a broken one stops the run at
            once and not in its third hour. 0 checks none.
        allow: folders besides those of the paths that links, lists and tables in them may lead into.
        empty_classes: a class folder without an image stops the run ("raise") or is no class ("skip").
        impostors: pairs of different identities for the rates.
        seed: of the split and the pairs.
    """

    path: str | os.PathLike[str]
    format: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    task: Task = "open"
    validation: str | os.PathLike[str] | None = None
    test: str | os.PathLike[str] | None = None
    val_share: float = 0.0
    test_share: float = 0.0
    image_size: int | tuple[int, int] | None = None
    channels: int = 3
    fit: Fit = "exact"
    resampling: Resampling = "bilinear"
    background: Background = "none"
    max_pixels: int = MAX_PIXELS
    on_broken: Literal["raise", "skip"] = "raise"
    max_broken: float = 0.01
    check: int = 20_000
    allow: Paths = ()
    empty_classes: Literal["raise", "skip"] = "raise"
    impostors: int = 200_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("val_share", "test_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1).")
        if self.val_share + self.test_share >= 1:
            raise ValueError(f"val_share={self.val_share} and test_share={self.test_share} leave nothing to train on.")
        for name, path in (("val_share", self.validation), ("test_share", self.test)):
            if path is not None and getattr(self, name):
                raise ValueError(f"{name}={getattr(self, name)} and a path to such images exclude each other.")
        if self.task not in ("open", "closed"):
            raise ValueError(f'task={self.task!r} must be "open" or "closed".')
        for name, least in (("check", 0), ("impostors", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")
        if self.empty_classes not in ("raise", "skip"):
            raise ValueError(f'empty_classes={self.empty_classes!r} must be "raise" or "skip".')
        if self.fit == "exact":
            warn_idle_fields(self, ["resampling"], 'fit="exact" resizes nothing; give "stretch", "crop" or "pad".')
        if self.on_broken == "raise":
            warn_idle_fields(self, ["max_broken"], 'on_broken="raise" allows none; give "skip".')
        else:
            warn_idle_fields(self, ["check"], 'on_broken="skip" finds broken images as they come; give "raise".')
        if self.task == "closed":
            warn_idle_fields(self, ["impostors"], 'task="closed" makes no pairs.')

    def prepare(self) -> None:
        """Look for what would stop training later: missing files, empty classes, broken images.

        Raises:
            FileNotFoundError: a path leads nowhere.
            ValueError: a class folder is empty, or an image cannot be decoded or has another size; the message names
                it.
        """
        for name, path in (("path", self.path), ("validation", self.validation), ("test", self.test)):
            if path is None:
                continue
            encoded = self._read(name, path)
            if self.check and self.on_broken == "raise":
                self._check(self._decoded(encoded))

    def open(self) -> IdentityData:
        """Index the images and split them.

        Raises:
            FileNotFoundError: a path leads nowhere.
            ValueError: a class folder is empty, the evaluation images do not fit the training images, or a share leaves
                too little.
        """
        encoded = self._read("path", self.path)
        part = self._parts(encoded)
        train = encoded if not part.any() else Subset(encoded, np.flatnonzero(part == 0))
        size = self._size_of(encoded)
        sets: dict[str, dict[str, EvaluationSet]] = {"val": {}, "test": {}}
        for number, (name, argument, path) in enumerate(
            (("val", "validation", self.validation), ("test", "test", self.test)), 1
        ):
            if path is not None:
                sets[name][name] = self._evaluation(self._read(argument, path), train, size, number)
            elif (part == number).any():
                sets[name][name] = self._evaluation(
                    Subset(encoded, np.flatnonzero(part == number)), train, size, number
                )
        digest = hashlib.sha256(np.ascontiguousarray(train.labels).data)
        digest.update(repr((train.num_classes, [str(i) for i in train.identities[:1000]], self.seed)).encode())
        pictures = self._decoded(train, self._preprocessing(size))
        return IdentityData(
            train=pictures,
            labels=train.labels,
            num_classes=train.num_classes,
            task=self.task,
            fingerprint=digest.hexdigest()[:16],
            augment=RandomFlip(),
            preprocessing=pictures.preprocessing,
            validation=sets["val"],
            test=sets["test"],
            class_names=_Names(train.identities),
            description=f"{self.path}: {train.num_classes:,} classes, {len(train):,} images",
        )

    def _read(self, argument: str, path: str | os.PathLike[str]) -> EncodedImages:
        try:
            encoded = open_images(path, self.format, allow=self.allow, **self.options)
        except FileNotFoundError as error:
            if Path(path).is_file():
                raise ValueError(
                    f"{argument}={os.fspath(path)!r} is a file, and {self.format} data lie in a folder. Take "
                    f"data={guess_format(path)}, or give the folder."
                ) from error
            raise FileNotFoundError(
                f"{argument}={os.fspath(path)!r}: {error}. Give a folder with a sub-folder of images per identity, or "
                "a file of labelled images; a relative path starts at the folder in which the command was started "
                f"(here {os.getcwd()})."
            ) from error
        if isinstance(encoded, FolderImages) and encoded.num_classes == 1:
            _refuse_a_list(argument, encoded.root, str(encoded.identities[0]))
        if isinstance(encoded, FolderImages) and self.empty_classes == "raise":
            folders = set(folders_in(Enclosure(path, self.allow)))
            if empty := sorted(folders - set(encoded.identities.tolist())):
                raise ValueError(
                    f"{argument}={os.fspath(path)!r}: {len(empty)} class folders hold no image, such as {empty[0]!r}."
                    " Fill or remove them, or set empty_classes='skip' to train without them."
                )
        return encoded

    def _size_of(self, encoded: EncodedImages) -> tuple[int, int]:
        if self.image_size is None:
            return self._decoded(encoded).size
        if isinstance(self.image_size, int):
            return (self.image_size, self.image_size)
        return (self.image_size[0], self.image_size[1])

    def _preprocessing(self, size: tuple[int, int]) -> Preprocessing:
        return Preprocessing(
            size=size,
            channels=self.channels,
            fit=self.fit,
            resampling=self.resampling,
            background=self.background,
        )

    def _decoded(self, encoded: EncodedImages, preprocessing: Preprocessing | None = None) -> DecodedImages:
        if preprocessing is None and self.image_size is not None:
            preprocessing = self._preprocessing(self._size_of(encoded))
        return DecodedImages(
            encoded,
            preprocessing=preprocessing,
            channels=self.channels,
            fit=self.fit,
            resampling=self.resampling,
            background=self.background,
            on_broken=self.on_broken,
            max_broken=self.max_broken,
            max_pixels=self.max_pixels,
        )

    def _check(self, images: DecodedImages) -> None:
        count = min(self.check, len(images))
        places = np.unique(np.linspace(0, len(images) - 1, count).astype(np.int64))
        for start in tqdm(
            range(0, len(places), _CHUNK), desc="Checking images", unit_scale=_CHUNK, disable=count < 5000
        ):
            images.fetch(places[start : start + _CHUNK])

    @staticmethod
    def _set_aside(name: str, share: float, count: int) -> int:
        """Identities to verify: the share, but no fewer than make a pair of each kind."""
        if not share:
            return 0
        size = max(round(count * share), LEAST)
        if size < 2 * FOLDS:
            _log.info(
                "%s=%s of %d identities sets %d aside: verification in %d folds instead of %d.",
                name, share, count, size, size // 2, FOLDS,
            )  # fmt: skip
        return size

    def _parts(self, encoded: EncodedImages) -> NDArray[np.int8]:
        """0 to train on, 1 for validation, 2 for the test, per image."""
        part = np.zeros(len(encoded), dtype=np.int8)
        if not (self.val_share or self.test_share):
            return part
        if self.task == "open":
            count = encoded.num_classes
            sizes = [
                self._set_aside(name, share, count)
                for name, share in (("val_share", self.val_share), ("test_share", self.test_share))
            ]
            if sum(sizes) > count - 2:
                raise ValueError(
                    f"val_share={self.val_share} and test_share={self.test_share} of {count} identities set "
                    f"{sum(sizes)} aside, since verification needs {LEAST}, and leave {max(0, count - sum(sizes))} to "
                    "train on. Set the shares to 0, or give the evaluation images by a path."
                )
            order = np.argsort(stream(self.seed, 11, np.arange(count)), kind="stable")
            single = np.bincount(encoded.labels, minlength=count)[order] < 2
            wanted = (slice(sizes[0]), slice(sizes[0], sum(sizes)))
            if any(len(order[place]) and (~single[place]).sum() < 2 for place in wanted):  # no genuine pairs
                order = order[np.argsort(single, kind="stable")]
            of_class = np.zeros(count, dtype=np.int8)
            of_class[order[wanted[0]]] = 1
            of_class[order[wanted[1]]] = 2
            return of_class[encoded.labels]
        # Closed: the images of a class in hashed order; the first goes to training whatever the shares.
        order = np.lexsort((stream(self.seed, 12, np.arange(len(encoded))), encoded.labels))
        counts = np.bincount(encoded.labels)
        rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        total = counts[encoded.labels[order]]
        from_end = total - 1 - rank
        val, test = np.floor(total * self.val_share + 0.5), np.floor(total * self.test_share + 0.5)
        chosen = np.where(from_end < val, 1, np.where(from_end < val + test, 2, 0))
        part[order] = np.where(rank == 0, 0, chosen)
        return part

    def _evaluation(
        self, encoded: EncodedImages, train: EncodedImages, size: tuple[int, int], number: int
    ) -> EvaluationSet:
        images = self._decoded(encoded, self._preprocessing(size))
        if self.task == "closed":
            classes = {str(identity): label for label, identity in enumerate(train.identities.tolist())}
            names = [str(identity) for identity in encoded.identities.tolist()]
            if unknown := [name for name in names if name not in classes]:
                raise ValueError(
                    f"{encoded.source} holds {len(unknown)} classes that are not trained on, such as {unknown[0]!r}."
                    ' Remove them, or set task="open" to verify unseen identities.'
                )
            labels = np.asarray([classes[name] for name in names], dtype=np.int64)[encoded.labels]
            return LabelledSet(images, labels, f"{encoded.source}: {len(encoded):,} images of trained classes")
        pairs = make_pairs(encoded.labels, np.arange(len(encoded)), seed=self.seed + number, impostors=self.impostors)
        identity = torch.from_numpy(np.asarray(encoded.labels, dtype=np.int64))
        about = f"{encoded.source}: {encoded.num_classes:,} identities"
        return VerificationSet(images, pairs, identity, about, [str(name) for name in encoded.identities.tolist()])


class _Names:
    """Identities as text, without a list of millions of strings."""

    def __init__(self, identities: NDArray[Any]) -> None:
        self._identities = identities

    def __len__(self) -> int:
        return len(self._identities)

    def __getitem__(self, index: int) -> str:
        return str(self._identities[index])


def _refuse_a_list(argument: str, root: Path, identity: str) -> None:
    """All pictures in one folder and a list beside it: the list knows whose they are.

    Raises:
        ValueError: it is so.
    """
    lists = sorted(path for path in root.iterdir() if path.suffix in (".lst", ".tsv", ".csv"))
    if lists:
        raise ValueError(
            f"{argument}={os.fspath(root)!r}: all images lie below {identity}, which would be one identity, and "
            f"{lists[0].name} lies beside it. Take data=list with {lists[0]}, or take the list away."
        )
