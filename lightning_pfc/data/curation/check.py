"""Looking through a data set: counts, sizes, broken and duplicate images, overlap with a test set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from lightning_pfc.data.errors import FormatError
from lightning_pfc.data.formats.base import EncodedImages
from lightning_pfc.data.pictures.decoding import MAX_PIXELS, decode_whole, has_transparency
from lightning_pfc.data.pictures.digests import DIGEST_BYTES, digest_pixels
from lightning_pfc.names.renamed import renamed_names

_CHUNK = 256


class Readable(Protocol):
    """Encoded images by position, with or without labels."""

    source: str

    def __len__(self) -> int:
        """Number of images."""

    def read(self, index: int) -> bytes:
        """The bytes of an image."""

    def locate(self, index: int) -> str:
        """Where it lies."""


@dataclass
class Report:
    """What was found.

    Attributes:
        source: the data set.
        num_images, num_classes: counted.
        label_range: smallest and largest identity, as the data name them.
        contiguous: whether identities are exactly ``0 ... C - 1``.
        per_class: ``(C,)`` images of each class.
        sizes: ``(height, width)`` of the images and how many have it.
        orientations: EXIF tags other than "as stored", and how many images have each.
        transparent: how many images are transparent somewhere.
        constant: positions of images whose pixels are all equal, without their transparency.
        broken: position, place and reason of each image that cannot be decoded.
        duplicates: groups of positions whose pictures are equal to the pixel.
        conflicts: those of the groups that span several classes.
        overlap: pairs ``(position here, position there)`` with equal pictures in the set compared with.
        shared_identities: identities that both sets name.
        locate: where an image lies, by its position.
    """

    source: str
    num_images: int
    num_classes: int
    label_range: tuple[str, str]
    contiguous: bool
    per_class: npt.NDArray[np.int64]
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    orientations: Counter[int] = field(default_factory=Counter)
    transparent: int = 0
    constant: list[int] = field(default_factory=list)
    broken: list[tuple[int, str, str]] = field(default_factory=list)
    duplicates: list[list[int]] = field(default_factory=list)
    conflicts: list[list[int]] = field(default_factory=list)
    overlap: list[tuple[int, int]] = field(default_factory=list)
    shared_identities: list[str] = field(default_factory=list)
    locate: Callable[[int], str] = str

    @property
    def is_clean(self) -> bool:
        """Nothing broken, nothing twice, nothing of the test set."""
        return not (self.broken or self.duplicates or self.overlap or self.shared_identities)


def check(
    images: EncodedImages,
    *,
    against: Readable | None = None,
    workers: int = 1,
    progress: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> Report:
    """Reads and decodes every image once.

    Memory: 16 bytes per image, plus what is found.

    Args:
        images: the data set.
        against: another one, such as a test set, of which nothing should occur here.
        workers: threads that decode.
        progress: show a progress bar.
        max_pixels: bound of what is decoded, see :func:`~lightning_pfc.data.pictures.decoding.decode`.
    """
    identities = images.identities
    numeric = identities.dtype.kind in "iu"
    report = Report(
        source=images.source,
        num_images=len(images),
        num_classes=images.num_classes,
        label_range=(str(identities[0]), str(identities[-1])),
        contiguous=bool(numeric and identities[0] == 0 and identities[-1] == len(identities) - 1),
        per_class=np.bincount(images.labels, minlength=images.num_classes),
        locate=images.locate,
    )
    digests = _digests(images, report, workers, progress, max_pixels)
    groups = list(_equal(digests))
    report.duplicates = groups
    report.conflicts = [group for group in groups if len(set(images.labels[group].tolist())) > 1]
    if against is not None:
        other = _digests(against, None, workers, progress, max_pixels)
        known = {digest: place for place, digest in enumerate(other.tolist()) if digest.strip(b"\0")}
        report.overlap = [(place, known[digest]) for place, digest in enumerate(digests.tolist()) if digest in known]
        report.shared_identities = _shared(images.identities, getattr(against, "identities", np.zeros(0, np.int64)))
    return report


class _Look(NamedTuple):
    """What was seen of an image: why it is broken, or the rest."""

    place: int
    reason: str = ""
    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    transparent: bool = False
    constant: bool = False
    digest: bytes = b""


def _digests(
    images: Readable, report: Report | None, workers: int, progress: bool, max_pixels: int
) -> npt.NDArray[Any]:
    """``(N,)`` hash of the pixels of each image, zeros where it is broken; fills what is seen of each in."""
    out = np.zeros(len(images), dtype=f"V{DIGEST_BYTES}")

    def look(place: int) -> _Look:
        try:
            data = images.read(place)
            found = decode_whole(data, where=images.locate(place), max_pixels=max_pixels)
            transparent = has_transparency(data, max_pixels=max_pixels)
        except FormatError as error:
            return _Look(place, str(error))
        constant = bool((found.pixels == found.pixels[0, 0]).all())
        return _Look(place, "", found.size, found.orientation, transparent, constant, digest_pixels(found))

    def chunk(start: int) -> list[_Look]:
        return [look(place) for place in range(start, min(start + _CHUNK, len(images)))]

    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(images), unit=" images", desc=images.source[-40:], disable=not progress) as bar,
    ):
        for seen in pool.map(chunk, range(0, len(images), _CHUNK)):
            for each in seen:
                if not each.reason:
                    out[each.place] = np.void(each.digest)
                if report is not None:
                    _note(report, each)
            bar.update(len(seen))
    return out


def _note(report: Report, seen: _Look) -> None:
    if seen.reason:
        report.broken.append((seen.place, report.locate(seen.place), seen.reason))
        return
    report.sizes[seen.size] += 1
    if seen.orientation != 1:
        report.orientations[seen.orientation] += 1
    report.transparent += seen.transparent
    if seen.constant:
        report.constant.append(seen.place)


def _equal(digests: npt.NDArray[Any]) -> Iterator[list[int]]:
    """Groups of positions with the same digest, in the order of their first one."""
    words = digests.view(np.uint64).reshape(-1, 2)
    whole = np.flatnonzero(words.any(axis=1))
    order = whole[np.lexsort((whole, words[whole, 1], words[whole, 0]))]
    ordered = words[order]
    starts = np.flatnonzero(np.r_[True, (ordered[1:] != ordered[:-1]).any(axis=1)]) if len(order) else np.zeros(0, int)
    lengths = np.diff(np.r_[starts, len(order)])
    groups = [order[starts[k] : starts[k] + lengths[k]].tolist() for k in np.flatnonzero(lengths > 1)]
    yield from sorted(groups)


def _shared(here: npt.NDArray[Any], there: npt.NDArray[Any]) -> list[str]:
    """Names in both. Numbers are no names: every data set has a class 0."""
    if here.dtype.kind in "iu" or there.dtype.kind in "iu":
        return []
    return sorted(set(here.tolist()) & set(there.tolist()))


def suspects(report: Report) -> list[tuple[int, str]]:
    """Position and reason of each image that had better not be trained on, in order of position.

    These are broken images, all but the first of equal pictures in one class, all equal pictures of different classes
    (which label is right is not known), and pictures of the other set.
    """
    found = {place: "broken" for place, _, _ in report.broken}
    conflicting = {place for group in report.conflicts for place in group}
    for group in report.duplicates:
        for place in group:
            if place in conflicting:
                found[place] = "equal picture in another class"
            elif place != group[0]:
                found[place] = f"equal to image {group[0]}, {report.locate(group[0])}"
    found.update({here: f"is image {there} of the other set" for here, there in report.overlap})
    return sorted(found.items())


_TOLD = ("describe", "histogram", "plot_histogram", "summary")
__getattr__ = renamed_names(__name__, {name: f"lightning_pfc.data.curation.check_report:{name}" for name in _TOLD})
