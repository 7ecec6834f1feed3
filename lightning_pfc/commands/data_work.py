"""What the commands of ``pfc-data`` do, each given its words and returning the exit status."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_pfc.commands.kept_lists import keep_list
from lightning_pfc.data.arrays import NpyFile, read_npy, read_npz
from lightning_pfc.data.formats import EncodedImages, Subset, open_images
from lightning_pfc.data.tables import read_table, write_table
from lightning_pfc.storage.whole_files import write_whole

_MOST_SAID = 20  # rejects on the terminal; the list has all


def _open(options: argparse.Namespace) -> EncodedImages:
    extra = {name: getattr(options, name) for name in ("root", "split") if getattr(options, name) is not None}
    return open_images(options.source, options.format, allow=options.allow, **extra)


def convert(options: argparse.Namespace) -> int:
    """Write a data set in another format."""
    from lightning_pfc.data.curation import convert as converting

    images = _open(options)
    out = np.zeros(len(images), bool)  # both lists are of the set as it is
    if options.exclude:
        out[_read_positions(options.exclude, len(images))] = True
    if options.exclude_identities:
        out |= _of_identities(images, options.exclude_identities)
    if out.all():
        lists = " and ".join(path for path in (options.exclude, options.exclude_identities) if path)
        raise ValueError(f"{lists}: every image of {images.source} is excluded, and nothing would be left.")
    if out.any():
        images = Subset(images, np.flatnonzero(~out))
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


def _of_identities(images: EncodedImages, path: str) -> npt.NDArray[np.bool_]:
    """Which images are of identities that a list names."""
    from lightning_pfc.data.overlap.listing import read_list

    names = {row.identity_a for row in read_list(path) if row.kind == "identity"}
    numbers = {str(name): number for number, name in enumerate(images.identities.tolist())}
    if unknown := sorted(names - numbers.keys()):
        raise ValueError(f"{path} names the identity {unknown[0]!r}, which {images.source} has not.")
    out = np.isin(images.labels, [numbers[name] for name in names])
    if out.all():
        raise ValueError(f"{path} names every identity of {images.source}: nothing would be left.")
    return out


def _read_positions(path: str, count: int) -> npt.NDArray[np.int64]:
    positions = []
    for number, cells in read_table(path, "a table of images", ("image",)):
        cell = cells.get("image", "")
        if cell and not (cell.isascii() and cell.isdigit() and int(cell) < count):
            raise ValueError(f"{path}, line {number}: image {cell!r} is not one of the {count} positions.")
        if cell:  # lines about classes have none
            positions.append(int(cell))
    return np.array(positions, dtype=np.int64)


def check(options: argparse.Namespace) -> int:
    """Count, and find broken, duplicate and leaked images."""
    from lightning_pfc.data.curation import check as checking
    from lightning_pfc.data.curation import check_report

    if options.workers < 1:
        raise ValueError(f"--workers is {options.workers}; it is at least 1.")
    if options.list:
        keep_list(options.list, force=options.force)
    against = None if options.against is None else _open_other(options.against, options.allow)
    images = _open(options)
    report = checking.check(
        images,
        against=against,
        workers=options.workers,
        progress=not options.quiet,
        max_pixels=options.max_pixels,
    )
    print(check_report.describe(report))
    if options.png:
        check_report.plot_histogram(report, options.png)
    if options.json:
        with write_whole(options.json, "w", encoding="utf-8") as file:
            json.dump(check_report.summary(report), file, indent=1)
    if options.list:
        rows = ((place, reason, images.locate(place)) for place, reason in checking.suspects(report))
        write_table(options.list, ("image", "reason", "place"), rows)
    return 0 if report.is_clean else 1


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
        max_pixels=options.max_pixels,
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
    cutter = FaceCutter(detector, size=options.size, faces=options.faces, max_pixels=options.max_pixels)
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

    keep_list(options.target, force=options.force)
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
    rows: list[Sequence[object]] = []
    for k, place in enumerate(found.outliers.tolist()):
        own, other = identities[labels[place]], identities[found.nearest_class[k]]
        rows.append(("outlier", place, own, f"{found.outlier_cosine[k]:.4f}", other, f"{found.nearest_cosine[k]:.4f}"))
    for (one, two), cosine in zip(found.merge.tolist(), found.merge_cosine.tolist(), strict=True):
        rows.append(("merge", "", identities[one], f"{cosine:.4f}", identities[two], ""))
    write_table(options.target, ("kind", "image", "class", "cosine", "other_class", "other_cosine"), rows)
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
    from lightning_pfc.commands.merge_work import merge as work

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
