"""Looking through a data set: counts, sizes, broken and duplicate images, overlap with a test set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from lightning_pfc.data.errors import FormatError
from lightning_pfc.data.formats.base import EncodedImages
from lightning_pfc.data.pictures.decoding import MAX_PIXELS, decode_whole
from lightning_pfc.data.pictures.digests import DIGEST_BYTES, digest_pixels

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
        constant: positions of images whose pixels are all equal.
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
    constant: bool = False
    digest: bytes = b""


def _digests(
    images: Readable, report: Report | None, workers: int, progress: bool, max_pixels: int
) -> npt.NDArray[Any]:
    """``(N,)`` hash of the pixels of each image, zeros where it is broken; fills what is seen of each in."""
    out = np.zeros(len(images), dtype=f"V{DIGEST_BYTES}")

    def look(place: int) -> _Look:
        try:
            found = decode_whole(images.read(place), where=images.locate(place), max_pixels=max_pixels)
        except FormatError as error:
            return _Look(place, str(error))
        constant = bool((found.pixels == found.pixels[0, 0]).all())
        return _Look(place, "", found.size, found.orientation, constant, digest_pixels(found))

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


def histogram(per_class: npt.NDArray[np.int64], *, width: int = 40) -> str:
    """Images per class as text: classes in bins that double in width, with bars."""
    top = int(per_class.max()).bit_length()
    edges = [1 << k for k in range(top + 1)]
    counts = [int(((per_class >= low) & (per_class < high)).sum()) for low, high in pairwise(edges)]
    most = max(counts)
    lines = []
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        bar = "#" * max(round(width * count / most), 1 if count else 0)
        span = f"{low}" if high == low + 1 else f"{low}-{high - 1}"
        lines.append(f"{span:>15} images: {count:>9} classes {bar}")
    return "\n".join(lines)


def describe(report: Report, *, most: int = 10) -> str:
    """The report as text for people; at most ``most`` lines of each kind of trouble."""
    per_class = report.per_class
    lines = [
        f"{report.source}",
        f"  images           {report.num_images}",
        f"  classes          {report.num_classes} (identities {report.label_range[0]} to {report.label_range[1]}"
        + (")" if report.contiguous else ", not 0 ... C-1)"),
        f"  images per class {int(per_class.min())} to {int(per_class.max())}, median {float(np.median(per_class)):g}; "
        f"{int((per_class == 1).sum())} classes with one image",
        "  sizes            " + ", ".join(f"{w}x{h}: {n}" for (h, w), n in report.sizes.most_common(5)),
        histogram(per_class),
        f"  broken images    {len(report.broken)}",
        *(f"    {reason}" for _, _, reason in report.broken[:most]),
        *_seen(report, most),
        f"  duplicates       {len(report.duplicates)} pictures occur more than once, "
        f"{len(report.conflicts)} of them in different classes",
        *(f"    {_listed(report, group)}" for group in report.duplicates[:most]),
    ]
    if report.overlap or report.shared_identities:
        lines += [
            f"  OVERLAP          {len(report.overlap)} images and {len(report.shared_identities)} identities "
            "occur in the other set as well",
            *(f"    {report.locate(here)} is image {there} of the other set" for here, there in report.overlap[:most]),
        ]
    return "\n".join(lines)


def _seen(report: Report, most: int) -> list[str]:
    """Lines about turned and empty pictures, where there are any."""
    lines = []
    if report.orientations:
        tags = ", ".join(f"{tag}: {count}" for tag, count in sorted(report.orientations.items()))
        total = sum(report.orientations.values())
        lines.append(f"  turned           {total} by their EXIF tag ({tags}), as every reader here turns them")
    if report.constant:
        lines.append(f"  constant         {len(report.constant)} pictures have the same value everywhere")
        lines += [f"    {report.locate(place)}" for place in report.constant[:most]]
    return lines


def _listed(report: Report, group: list[int], most: int = 4) -> str:
    more = f" and {len(group) - most} more" if len(group) > most else ""
    return " = ".join(report.locate(place) for place in group[:most]) + more


def plot_histogram(report: Report, path: str) -> None:
    """Draws images per class as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    top = int(report.per_class.max())
    bins = np.arange(0.5, top + 1.5) if top <= 60 else np.geomspace(0.5, top + 0.5, 50)
    axes.hist(report.per_class, bins=bins.tolist(), color="#3b6ea5")
    if top > 60:
        axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set(xlabel="images of a class", ylabel="classes")
    axes.set_title(f"{report.num_images:,} images of {report.num_classes:,} classes")
    figure.savefig(path, dpi=120, format="png")


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


def summary(report: Report) -> dict[str, Any]:
    """The report as plain numbers and lists, for JSON."""
    return {
        "source": report.source,
        "images": report.num_images,
        "classes": report.num_classes,
        "label_range": list(report.label_range),
        "contiguous": report.contiguous,
        "images_per_class": {
            "min": int(report.per_class.min()),
            "median": float(np.median(report.per_class)),
            "max": int(report.per_class.max()),
            "histogram": np.bincount(report.per_class).tolist(),
        },
        "sizes": {f"{width}x{height}": count for (height, width), count in report.sizes.items()},
        "broken": [{"image": place, "place": where, "reason": reason} for place, where, reason in report.broken],
        "orientations": {str(tag): count for tag, count in sorted(report.orientations.items())},
        "constant": report.constant,
        "duplicates": report.duplicates,
        "duplicate_places": [[report.locate(place) for place in group] for group in report.duplicates],
        "duplicates_across_classes": report.conflicts,
        "overlap": [list(pair) for pair in report.overlap],
        "shared_identities": report.shared_identities,
    }
