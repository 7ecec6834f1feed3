"""What the commands of ``pfc-data`` do, each given its words and returning the exit status."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_pfc.data.arrays import NpyFile, read_npy, read_npz
from lightning_pfc.data.errors import reading
from lightning_pfc.data.formats import EncodedImages, Subset, open_images
from lightning_pfc.data.pictures.decoding import MOST_PIXELS
from lightning_pfc.storage.regular import read_regular
from lightning_pfc.storage.whole_files import write_whole

_MAX_TABLE = 1 << 30  # bytes
_MOST_SAID = 20  # rejects on the terminal; the list has all


def _open(options: argparse.Namespace) -> EncodedImages:
    extra = {name: getattr(options, name) for name in ("root", "split") if getattr(options, name) is not None}
    return open_images(options.source, options.format, allow=options.allow, **extra)


def convert(options: argparse.Namespace) -> int:
    """Write a data set in another format."""
    from lightning_pfc.data.curation import convert as converting

    images = _open(options)
    if options.exclude:
        excluded = _read_positions(Path(options.exclude), len(images))
        images = Subset(images, np.setdiff1d(np.arange(len(images)), excluded))
    if options.exclude_identities:
        images = _without_identities(images, options.exclude_identities)
    format = options.to or converting.guess_target(options.target)
    target = converting.convert(
        images,
        options.target,
        format,
        layout=options.layout,
        shard_size=options.shard_size,
        shuffle=options.shuffle,
        progress=not options.quiet,
    )
    print(f"{target}: {len(images)} images of {images.num_classes} classes as {format}")
    return 0


def _without_identities(images: EncodedImages, path: str) -> EncodedImages:
    from lightning_pfc.data.overlap.listing import read_list

    names = {row.identity_a for row in read_list(path) if row.kind == "identity"}
    numbers = {str(name): number for number, name in enumerate(images.identities.tolist())}
    if unknown := sorted(names - numbers.keys()):
        raise ValueError(f"{path} names the identity {unknown[0]!r}, which {images.source} has not.")
    out = np.isin(images.labels, [numbers[name] for name in names])
    if out.all():
        raise ValueError(f"{path} names every identity of {images.source}: nothing would be left.")
    return Subset(images, np.flatnonzero(~out))


def _read_positions(path: Path, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    with reading(path, "a table of images"):
        lines = read_regular(path, _MAX_TABLE).decode("utf-8").splitlines()
    columns = lines[0].split("\t") if lines else []
    if "image" not in columns:
        raise ValueError(f"{path}: the first line must name a column `image`, found {columns[:5]}.")
    place = columns.index("image")
    positions = []
    for number, line in enumerate(lines[1:], start=2):
        cell = line.split("\t")[place] if line.count("\t") >= place else ""
        if cell and not (cell.isascii() and cell.isdigit() and int(cell) < count):
            raise ValueError(f"{path}, line {number}: image {cell!r} is not one of the {count} positions.")
        if cell:  # lines about classes have none
            positions.append(int(cell))
    return np.array(positions, dtype=np.int64)


def check(options: argparse.Namespace) -> int:
    """Count, and find broken, duplicate and leaked images."""
    from lightning_pfc.data.curation import check as checking

    if options.workers < 1:
        raise ValueError(f"--workers is {options.workers}; it is at least 1.")
    against = None if options.against is None else _open_other(options.against, options.allow)
    images = _open(options)
    report = checking.check(
        images,
        against=against,
        workers=options.workers,
        progress=not options.quiet,
        max_pixels=_checked_pixels(options.max_pixels),
    )
    print(checking.describe(report))
    if options.png:
        checking.plot_histogram(report, options.png)
    if options.json:
        with write_whole(options.json, "w", encoding="utf-8") as file:
            json.dump(checking.summary(report), file, indent=1)
    if options.list:
        with write_whole(options.list, "w", encoding="utf-8", newline="\n") as file:
            file.write("image\treason\tplace\n")
            for place, reason in checking.suspects(report):
                file.write(f"{place}\t{reason}\t{images.locate(place)}\n")
    return 0 if report.is_clean else 1


def _checked_pixels(value: int) -> int:
    if not 1 <= value <= MOST_PIXELS:
        raise ValueError(f"--max-pixels is {value}; it is 1 to {MOST_PIXELS}.")
    return value


def _open_other(path: str, allow: Sequence[str]) -> Any:
    if path.lower().endswith(".bin"):
        from lightning_pfc.evaluation.bins import BinImages

        return BinImages(path)
    return open_images(path, allow=allow)


def make_bin(options: argparse.Namespace) -> int:
    """Make a verification file from a list of pairs."""
    from lightning_pfc.evaluation.bins import write_bin
    from lightning_pfc.evaluation.pairs import PairedImages

    images = PairedImages(options.pairs, options.root, allow=options.allow)
    pairs = images.pairs()
    both = np.stack([pairs.first.numpy(), pairs.second.numpy()], axis=1).reshape(-1)
    data = {place: images.read(place) for place in np.unique(both).tolist()}
    write_bin(options.target, [data[place] for place in both.tolist()], pairs.same.tolist())
    same = int(pairs.same.sum())
    print(f"{options.target}: {len(pairs.same)} pairs, {same} same and {len(pairs.same) - same} different")
    return 0


def align(options: argparse.Namespace) -> int:
    """Cut faces out by five points."""
    if options.detector is not None:
        return _align_photos(options)
    from lightning_pfc.data.curation.alignment import align_files

    if options.landmarks is None:
        raise ValueError("align needs a table of points before ROOT and TARGET, or --detector FILE that finds them.")
    done, failures = align_files(
        options.landmarks,
        options.root,
        options.target,
        size=options.size,
        quality=options.quality,
        max_pixels=_checked_pixels(options.max_pixels),
        allow=options.allow,
        progress=not options.quiet,
    )
    for failure in failures:
        print(failure, file=sys.stderr)
    print(f"{options.target}: {done} images aligned, {len(failures)} left out")
    return 1 if failures else 0


def _align_photos(options: argparse.Namespace) -> int:
    from lightning_pfc.faces import FaceCutter, align_photos, open_detector

    if options.landmarks is not None:
        raise ValueError(f"--detector finds the points itself: leave the table {options.landmarks} out.")
    detector = open_detector(options.detector, least_score=options.least_score)
    cutter = FaceCutter(
        detector, size=options.size, faces=options.faces, max_pixels=_checked_pixels(options.max_pixels)
    )
    report = align_photos(
        options.root,
        options.target,
        cutter,
        detector_file=options.detector,
        quality=options.quality,
        allow=options.allow,
        progress=not options.quiet,
    )
    for path, reason in report.rejects[:_MOST_SAID]:
        print(f"{path}: {reason}", file=sys.stderr)
    if len(report.rejects) > _MOST_SAID:
        print(f"and {len(report.rejects) - _MOST_SAID:,} more in {report.table}", file=sys.stderr)
    several = f", {report.several:,} photos show several" if report.several else ""
    print(f"{options.target}: {report.faces:,} faces of {report.photos:,} photos aligned{several}; {report.table}")
    if report.rejects:
        print(f"{len(report.rejects):,} photos rejected: {report.sheet}")
    return 1 if report.rejects else 0


def clean(options: argparse.Namespace) -> int:
    """Find label noise with embeddings."""
    from lightning_pfc.data.curation.clean import find
    from lightning_pfc.data.formats.base import contiguous_labels

    embeddings, keys, names = _load_embeddings(options.embeddings, options.labels)
    labels, identities = contiguous_labels(keys)
    if names is not None:
        if names.ndim != 1 or identities.dtype.kind not in "iu" or not 0 <= identities[-1] < len(names):
            raise ValueError(
                f"{options.embeddings}: `names` has the shape {names.shape}; it must hold a name per class."
            )
        identities = names[identities]
    found = find(
        embeddings,
        labels,
        outlier_below=options.outlier_below,
        merge_above=options.merge_above,
        progress=not options.quiet,
    )
    with write_whole(options.target, "w", encoding="utf-8", newline="\n") as file:
        file.write("kind\timage\tclass\tcosine\tother_class\tother_cosine\n")
        for k, place in enumerate(found.outliers.tolist()):
            other = identities[found.nearest_class[k]]
            own = identities[labels[place]]
            file.write(
                f"outlier\t{place}\t{own}\t{found.outlier_cosine[k]:.4f}\t{other}\t{found.nearest_cosine[k]:.4f}\n"
            )
        for (one, two), cosine in zip(found.merge.tolist(), found.merge_cosine.tolist(), strict=True):
            file.write(f"merge\t\t{identities[one]}\t{cosine:.4f}\t{identities[two]}\t\n")
    print(
        f"{options.target}: {len(found.outliers)} outliers among {len(labels)} images, {len(found.merge)} pairs of "
        "classes to "
        f"merge among {len(identities)}"
    )
    return 0


def _load_embeddings(path: str, labels: str | None) -> tuple[Any, Any, Any]:
    """Embeddings, labels, and names of the classes or ``None``."""
    if path.lower().endswith(".npy"):
        if labels is None:
            raise ValueError(f"{path} holds no labels; give them with --labels.")
        return NpyFile(path), read_npy(labels), None
    file, there = read_npz(path, ("embeddings", "emb", "labels", "label", "names"))
    name = next((name for name in ("embeddings", "emb") if name in file), None)
    if name is None:
        raise ValueError(f"{path} holds {list(there)}; an array `embeddings` or `emb` is needed.")
    embeddings = file[name]
    if labels is not None:
        return embeddings, read_npy(labels), None
    label = next((name for name in ("labels", "label") if name in file), None)
    if label is None:
        raise ValueError(f"{path} holds {list(there)}; an array `labels` or `label` is needed, or --labels.")
    return embeddings, file[label], file.get("names")


def index(options: argparse.Namespace) -> int:
    """Write the missing .idx of a .rec."""
    from lightning_pfc.data.formats.recordio import RecordFile

    path = Path(options.record).with_suffix(".idx")
    if path.exists():
        raise FileExistsError(f"{path} exists already.")
    count = 0
    with write_whole(path) as file:
        for count, offset in enumerate(RecordFile(options.record).scan(), start=1):
            file.write(b"%d\t%d\n" % (count - 1, offset))
    print(f"{path}: {count} records")
    return 0


def overlap(options: argparse.Namespace) -> int:
    """List what two data sets have in common."""
    from lightning_pfc.commands.overlap_work import overlap as work

    return work(options)


def merge(options: argparse.Namespace) -> int:
    """Join two data sets."""
    from lightning_pfc.commands.overlap_work import merge as work

    return work(options)


WORK = {
    "convert": convert,
    "check": check,
    "make-bin": make_bin,
    "align": align,
    "clean": clean,
    "overlap": overlap,
    "merge": merge,
    "index": index,
}
