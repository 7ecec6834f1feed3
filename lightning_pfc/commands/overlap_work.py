"""What ``pfc-data overlap`` does: lists the identities and pictures that two data sets have in common."""

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from lightning_pfc.commands.kept_lists import keep_list
from lightning_pfc.commands.onnx_words import ONNX_WORDS
from lightning_pfc.commands.overlap_defaults import DEFAULTS
from lightning_pfc.commands.overlap_model import Broken, compare_by_embedding, cosine, open_model, partial_folder
from lightning_pfc.data.formats import EncodedImages
from lightning_pfc.data.overlap.comparing import Found, compare, same_pixels
from lightning_pfc.data.overlap.cosines import Pairs
from lightning_pfc.data.overlap.fingerprints import HASH_BITS, Fingerprints, take_fingerprints
from lightning_pfc.data.overlap.listing import write_list
from lightning_pfc.data.overlap.merging import refuse_inside, refuse_same
from lightning_pfc.data.overlap.sheet import write_sheet

_OF_EMBEDDINGS = ("threshold", "same_picture", "flip", "fit", "batch_size", *ONNX_WORDS)


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
    model = None if options.model is None else open_model(options)  # what is wrong with it is said at once
    pictures: list[tuple[str, Pairs]] = []
    prints: tuple[Fingerprints, ...] = ()
    broken: Broken = ([], [])
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
        found, rejects = compare_by_embedding(options, model, a, b, pictures)
        broken = broken if prints else rejects
    write_list(target, a, b, found, broken)
    write_sheet(sheet, a, b, found)
    if model is not None:
        shutil.rmtree(partial_folder(target))
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
        cosine("--same-picture", options.same_picture)


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


def _say(found: Found, a: EncodedImages, b: EncodedImages, broken: Broken, target: Path, sheet: Path) -> None:
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
