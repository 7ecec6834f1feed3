"""What ``pfc-data overlap`` and ``pfc-data merge`` do."""

from __future__ import annotations

import argparse
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from lightning_pfc.commands.kept_lists import keep_list
from lightning_pfc.commands.onnx_words import ONNX_WORDS, onnx_words
from lightning_pfc.commands.overlap_defaults import DEFAULTS
from lightning_pfc.data.formats import EncodedImages, open_images
from lightning_pfc.data.overlap.comparing import Found, compare, same_embeddings, same_identities, same_pixels
from lightning_pfc.data.overlap.cosines import Pairs
from lightning_pfc.data.overlap.fingerprints import HASH_BITS, Fingerprints, take_fingerprints
from lightning_pfc.data.overlap.identity_means import Embedded, consequence, identity_means
from lightning_pfc.data.overlap.listing import Row, read_list, write_list
from lightning_pfc.data.overlap.merging import MergedImages, refuse_inside, refuse_same
from lightning_pfc.data.overlap.sheet import write_sheet
from lightning_pfc.runs.thresholds import Thresholds

_OF_EMBEDDINGS = ("threshold", "same_picture", "flip", "fit", "batch_size", *ONNX_WORDS)
_Broken = tuple[list[tuple[int, str]], list[tuple[int, str]]]


def overlap(options: argparse.Namespace) -> int:
    """List the identities and pictures that two data sets have in common."""
    options = _settled(options)
    keep_list(options.target, force=options.force)
    a, b = _open(options.a, options.format, options), _open(options.b, options.format_b, options)
    refuse_same(a, b)
    target = Path(options.target)
    sheet = Path(options.png) if options.png else target.with_suffix(".png")
    for written in (target, sheet):
        refuse_inside(written, options.a, options.b)
    model = None if options.model is None else _open_model(options)  # what is wrong with it is said at once
    pictures: list[tuple[str, Pairs]] = []
    prints: tuple[Fingerprints, ...] = ()
    broken: _Broken = ([], [])
    if options.pixels:
        first, second = (
            take_fingerprints(images, workers=options.workers, progress=not options.quiet) for images in (a, b)
        )
        prints = (first, second)
        broken = (first.broken, second.broken)
        pictures += same_pixels(first, second, options.near, progress=not options.quiet)
    if model is None:
        found = compare(a, b, pictures, None, None, None)
    else:
        found, rejects = _by_embedding(options, model, a, b, pictures)
        broken = broken if prints else rejects
    write_list(target, a, b, found, broken)
    write_sheet(sheet, a, b, found)
    if model is not None:
        shutil.rmtree(_work(target))
    _say(found, a, b, broken, target, sheet)
    return 1 if len(found.pictures.a) or len(found.identities.a) else 0


def _settled(options: argparse.Namespace) -> argparse.Namespace:
    """The options, with what was not given filled in; refused is what makes no sense, or changes nothing."""
    filled = argparse.Namespace(**vars(options))
    for name, value in DEFAULTS.items():
        if getattr(filled, name) is None:
            setattr(filled, name, value)
    _check(filled)
    for name in () if options.model is not None else _OF_EMBEDDINGS:
        value = getattr(options, name)
        if value is not None and value is not False:
            word = f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
            raise ValueError(f"{word} is of embeddings: give what makes them, --model MODEL.")
    if not options.pixels and options.near is not None:
        raise ValueError(f"--near {options.near} is of pixels: leave --no-pixels out.")
    return filled


def _check(options: argparse.Namespace) -> None:
    if options.workers < 1:
        raise ValueError(f"--workers is {options.workers}; it is at least 1.")
    if options.batch_size < 1:
        raise ValueError(f"--batch-size is {options.batch_size}; it is at least 1.")
    if not 0 <= options.near <= HASH_BITS // 4:
        raise ValueError(f"--near is {options.near}; of {HASH_BITS} bits 0 to {HASH_BITS // 4} may differ.")
    if options.model is None and not options.pixels:
        raise ValueError("--no-pixels leaves nothing to compare: give --model MODEL.")
    if Path(options.target).suffix.lower() not in (".tsv", ".csv"):
        raise ValueError(f"{options.target}: the list is written as .tsv or .csv; name it so.")
    if options.same_picture != "none":
        _cosine("--same-picture", options.same_picture)


def _cosine(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not -1 <= value <= 1:
        raise ValueError(f"{name} is {text!r}; it is a cosine, -1 to 1.")
    return value


class _Singles(EncodedImages):
    """Pictures without identities: each is one of its own."""

    def __init__(self, images: Any) -> None:
        self._images = images
        self.source = images.source
        self.labels = np.arange(len(images), dtype=np.int64)
        self.identities = np.arange(len(images), dtype=np.int64)

    @override
    def read(self, index: int) -> bytes:
        data: bytes = self._images.read(self._check_index(index))
        return data

    @override
    def locate(self, index: int) -> str:
        place: str = self._images.locate(index)
        return place


def _open(path: str, format: str | None, options: argparse.Namespace) -> EncodedImages:
    from lightning_pfc.deploy.picture_folders import LoosePictures, open_pictures

    if path.lower().endswith(".bin") and format is None:
        from lightning_pfc.evaluation.bins import BinImages

        return _Singles(BinImages(path))
    images = open_pictures(path, format, allow=options.allow)
    return _Singles(images) if isinstance(images, LoosePictures) else images


# by embedding


def _work(target: Path) -> Path:
    return target.with_name(f"{target.name}.partial")


class _Model(NamedTuple):
    """What makes embeddings; the threshold, and what is known of it."""

    embedder: Any
    threshold: float
    meaning: str


def _open_model(options: argparse.Namespace) -> _Model:
    from lightning_pfc.deploy.embedders import open_embedder

    given = options.threshold
    if given is not None and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", given):
        value = _cosine("--threshold", given)
        embedder = open_embedder(options.model, flip=options.flip, fit=options.fit, onnx=onnx_words(options))
        return _Model(embedder, value, f"cosine {given}, which you gave")
    known, adds = _known_of(options.model)
    name = given or _first(options, known, options.flip or adds)
    summed = known.get_named(name).flip == "sum"
    if options.flip and not summed:
        raise ValueError(
            f"--flip: threshold {name!r} was chosen without mirror images; leave --flip out, or give a cosine, such as "
            "--threshold 0.4."
        )
    exported: Any = open_embedder(
        options.model, flip=options.flip or (summed and not adds), fit=options.fit, onnx=onnx_words(options)
    )
    found = exported.recogniser.threshold(name)
    meaning = f"cosine {found.value:.4f} ({name}: of pairs of pictures of two people {found.rate:.2g} are above it)"
    return _Model(exported, found.value, meaning)


def _first(options: argparse.Namespace, known: Thresholds, summed: bool) -> str:
    """The first threshold of pairs; of sums with mirror images, where there will be no others."""
    fitting = (name for name, t in known.items() if t.kind == "verification" and (t.flip == "sum" or not summed))
    if name := next(fitting, None):
        return name
    raise ValueError(
        f"{options.model} has no threshold of its own{' for sums with mirror images' * summed}: give a cosine, such as "
        "--threshold 0.4, and look at what is said of it; or give a calibrated export."
    )


def _by_embedding(
    options: argparse.Namespace,
    model: _Model,
    a: EncodedImages,
    b: EncodedImages,
    pictures: list[tuple[str, Pairs]],
) -> tuple[Found, _Broken]:
    work = _work(Path(options.target))
    (one, left), (two, right) = (
        _embedded(model.embedder, images, work / name, options) for name, images in (("a", a), ("b", b))
    )
    _say_consequence(one, two, model.threshold, model.meaning)  # before the long part
    means = _means(one, work / "a.means"), _means(two, work / "b.means")
    alike = same_identities(means, model.threshold, progress=not options.quiet)
    if options.same_picture != "none":
        pictures = [
            *pictures,
            *same_embeddings(one, two, _cosine("--same-picture", options.same_picture), progress=not options.quiet),
        ]
    return compare(a, b, pictures, alike, means, (one, two)), (left, right)


def _known_of(model: str) -> tuple[Thresholds, bool]:
    """The thresholds of a model, and whether it adds mirror images itself."""
    from lightning_pfc.deploy.description import FILE
    from lightning_pfc.deploy.folder import open_folder
    from lightning_pfc.runs.run_folder import Run

    if (Path(model) / FILE).is_file():
        about = open_folder(model)
        return about.thresholds, about.model.flip == "sum"
    return (Run(Path(model)).thresholds if Path(model).is_dir() else Thresholds(source=model)), False


def _embedded(
    embedder: Any, images: EncodedImages, work: Path, options: argparse.Namespace
) -> tuple[Embedded, list[tuple[int, str]]]:
    from lightning_pfc.deploy.embedding import embed_rows

    done = embed_rows(
        embedder, images, work, batch_size=options.batch_size, workers=options.workers, progress=not options.quiet
    )
    return Embedded(done.rows, done.images, images.labels[done.images], images.num_classes), done.rejects


def _means(data: Embedded, path: Path) -> npt.NDArray[np.float32]:
    """Means of the identities, on disk: a row for each may be more than memory holds."""
    shape = (data.num_classes, data.rows.shape[1])
    return identity_means(data, np.memmap(path, np.float32, "w+", shape=shape))


def _say_consequence(one: Embedded, two: Embedded, threshold: float, meaning: str) -> None:
    of = consequence(one, threshold) + consequence(two, threshold)
    pairs = one.num_classes * two.num_classes
    print(f"threshold        {meaning}, for the mean cosine of all pairs of pictures of two identities")
    if 2 * of.above > of.pairs:
        raise ValueError(
            f"{of.above / of.pairs:.0%} of the pairs of identities of one set are above the threshold: it is too low, "
            "or the model does not get pictures as it was trained on (size, scale, order of colours)."
        )
    if of.pairs:
        print(
            f"  by chance      {of.above:,} of {of.pairs:,} pairs of identities of one set are above it: of the "
            f"{pairs:,} pairs here about {pairs * of.above / of.pairs:,.0f}{_unsure(of.above, of.pairs, pairs)}"
        )
    if of.identities:
        print(f"  is found       {of.found:,} of {of.identities:,} identities, one half of their pictures by the other")


def _unsure(above: int, tried: int, pairs: int) -> str:
    return "" if above else f" (at most {3 * pairs / tried:,.1f}, with 95 % confidence)"


def _say(found: Found, a: EncodedImages, b: EncodedImages, broken: _Broken, target: Path, sheet: Path) -> None:
    how = Counter(found.identity_how.tolist())
    ways = ", ".join(f"{count:,} by {name}" for name, count in how.items())
    print(
        f"identities       {len(found.identities.a):,} in both ({a.num_classes:,} and {b.num_classes:,} in all)", ways
    )
    if len(found.names.a):
        print(f"  one name       {len(found.names.a):,} in both that were not taken for one")
    ways = ", ".join(f"{count:,} {name}" for name, count in Counter(found.picture_how.tolist()).items())
    shared = len(np.unique(found.pictures.a)), len(np.unique(found.pictures.b))
    print(f"pictures         {shared[0]:,} of {len(a):,} are in the other set as {shared[1]:,} of {len(b):,}", ways)
    if broken[0] or broken[1]:
        print(f"broken           {len(broken[0]):,} and {len(broken[1]):,} pictures, listed; they were not compared")
    print(f"{target}, {sheet}: look at them, then merge, or leave pictures out with convert --exclude")


# merging


def merge(options: argparse.Namespace) -> int:
    """Join two data sets by a list of the identities that are in both."""
    from lightning_pfc.data.curation import convert as converting

    a = open_images(options.a, options.format, allow=options.allow)
    b = open_images(options.b, options.format_b, allow=options.allow)
    refuse_same(a, b)
    refuse_inside(options.target, options.a, options.b)
    format = options.to or converting.guess_target(options.target)
    pairs = [] if options.pairs is None else read_list(options.pairs)
    if options.same_names:
        pairs += _same_names(a, b)
    images = MergedImages(a, b, pairs, prefixes=_prefixes(options), allow_chains=options.chains)
    target = converting.convert(
        images, options.target, format, shard_size=options.shard_size, progress=not options.quiet
    )
    counts = images.counts
    print(f"{target}: {counts.images:,} pictures of {counts.identities:,} identities as {format}")
    print(
        f"  {a.num_classes:,} and {b.num_classes:,} identities, of which {counts.joined:,} in both; "
        f"{counts.prefixed:,} carry a prefix; {counts.left_out:,} pictures of {b.source} left out, which {a.source} has"
    )
    if counts.contradicting:
        print(f"  {counts.contradicting:,} pictures are in both under two identities: kept twice, look at the list")
    return 0


def _same_names(a: EncodedImages, b: EncodedImages) -> list[Row]:
    if a.identities.dtype.kind in "iu" or b.identities.dtype.kind in "iu":
        raise ValueError("--same-names: the identities of a set are numbers here, which are no names.")
    both = sorted(set(a.identities.tolist()) & set(b.identities.tolist()))
    return [Row(0, "identity", str(name), str(name)) for name in both]


def _prefixes(options: argparse.Namespace) -> tuple[str, str]:
    one, two = options.prefixes or (_plain(options.a), _plain(options.b))
    if options.prefixes is None and one == two:
        return "a", "b"
    if one == two or not one or not two:
        raise ValueError(f"--prefixes {one} {two}: give two that differ.")
    return one, two


def _plain(path: str) -> str:
    return re.sub(r"[^\w-]", "", Path(os.path.abspath(path)).stem) or "set"
