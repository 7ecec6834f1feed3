"""Of ``pfc-data overlap --model``: the network, its threshold and what that means here, and what it finds alike."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_pfc.commands.onnx_words import onnx_words
from lightning_pfc.data.formats import EncodedImages
from lightning_pfc.data.overlap.comparing import Found, compare, same_embeddings, same_identities
from lightning_pfc.data.overlap.cosines import Pairs
from lightning_pfc.data.overlap.identity_means import Embedded, consequence, identity_means
from lightning_pfc.runs.thresholds import Thresholds

Broken = tuple[list[tuple[int, str]], list[tuple[int, str]]]


def cosine(name: str, text: str) -> float:
    """The number that an option's text is.

    Raises:
        ValueError: it is no cosine.
    """
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not -1 <= value <= 1:
        raise ValueError(f"{name} is {text!r}; it is a cosine, -1 to 1.")
    return value


def partial_folder(target: Path) -> Path:
    """Where embeddings lie until the list is written; one that was interrupted goes on from there."""
    return target.with_name(f"{target.name}.partial")


class OverlapModel(NamedTuple):
    """What makes embeddings; the threshold, and what is known of it."""

    embedder: Any
    threshold: float
    meaning: str


def open_model(options: argparse.Namespace) -> OverlapModel:
    """The network of ``--model`` with the threshold of ``--threshold``, or else its own.

    Raises:
        ValueError: the threshold is no cosine, does not fit ``--flip``, or is missing.
    """
    from lightning_pfc.deploy.embedders import open_embedder

    given = options.threshold
    if given is not None and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", given):
        value = cosine("--threshold", given)
        embedder = open_embedder(options.model, flip=options.flip, fit=options.fit, onnx=onnx_words(options))
        return OverlapModel(embedder, value, f"cosine {given}, which you gave")
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
    return OverlapModel(exported, found.value, meaning)


def _first(options: argparse.Namespace, known: Thresholds, summed: bool) -> str:
    """The first threshold of pairs; of sums with mirror images, where there will be no others."""
    fitting = (name for name, t in known.items() if t.kind == "verification" and (t.flip == "sum" or not summed))
    if name := next(fitting, None):
        return name
    raise ValueError(
        f"{options.model} has no threshold of its own{' for sums with mirror images' * summed}: give a cosine, such as "
        "--threshold 0.4, and look at what is said of it; or give a calibrated export."
    )


def compare_by_embedding(
    options: argparse.Namespace,
    model: OverlapModel,
    a: EncodedImages,
    b: EncodedImages,
    pictures: list[tuple[str, Pairs]],
) -> tuple[Found, Broken]:
    """What two sets have in common, with what was found by pixels before, and the pictures that could not be read.

    Raises:
        ValueError: most identities of one set are above the threshold, so it means nothing.
    """
    work = partial_folder(Path(options.target))
    (one, left), (two, right) = (
        _embedded(model.embedder, images, work / name, options) for name, images in (("a", a), ("b", b))
    )
    _say_consequence(one, two, model.threshold, model.meaning)  # before the long part
    means = _means(one, work / "a.means"), _means(two, work / "b.means")
    alike = same_identities(means, model.threshold, progress=not options.quiet)
    if options.same_picture != "none":
        pictures = [
            *pictures,
            *same_embeddings(one, two, cosine("--same-picture", options.same_picture), progress=not options.quiet),
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
