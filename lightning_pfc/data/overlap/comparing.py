"""What two data sets have in common."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lightning_pfc.data.formats.base import EncodedImages
from lightning_pfc.data.overlap.cosines import (
    Pairs,
    equal_keys,
    pairs_above,
    signs,
    strongest,
    unit_rows,
)
from lightning_pfc.data.overlap.fingerprints import HASH_BITS, Fingerprints
from lightning_pfc.data.overlap.identity_means import Embedded, as_block

SHARED = 0.5
"""Two identities are taken for one where this share of the pictures of either are pictures of the other."""

_LOOKED_AT = 64  # pictures of an identity among which the two most alike are searched
_MOST_SEARCHED = 10_000  # pairs; of further ones the first pictures are named


@dataclass(frozen=True)
class Found:
    """What two sets have in common; positions are those in the sets.

    Attributes:
        pictures: pairs of pictures, with the score of the surest way in which they are one.
        picture_how: of each: ``bytes``, ``pixels``, ``near``, ``embedding``.
        identities: pairs of identities taken for one.
        identity_how: of each: ``embedding`` or ``pictures``.
        names: pairs of one name that were not taken for one; the score is NaN without embeddings.
        examples: ``(identities, 2)`` a picture of each: the two that are most alike, or the first ones.
        name_examples: likewise of ``names``.
    """

    pictures: Pairs = field(default_factory=Pairs.none)
    picture_how: npt.NDArray[np.str_] = field(default_factory=lambda: np.zeros(0, np.str_))
    identities: Pairs = field(default_factory=Pairs.none)
    identity_how: npt.NDArray[np.str_] = field(default_factory=lambda: np.zeros(0, np.str_))
    names: Pairs = field(default_factory=Pairs.none)
    examples: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    name_examples: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))


def same_pixels(a: Fingerprints, b: Fingerprints, near: int, *, progress: bool = True) -> list[tuple[str, Pairs]]:
    """Pictures that are equal by byte, by pixel, or whose perceptual hashes differ in at most ``near`` bits.

    The score is the share of bits that agree. Memory: blocks of fixed size, and what is found.
    """
    places = np.flatnonzero(a.has_hash), np.flatnonzero(b.has_hash)
    least = 1 - 2 * (near + 0.5) / HASH_BITS
    rows = tuple(signs(prints.hashes[place]) for prints, place in zip((a, b), places, strict=True))
    alike = pairs_above(
        rows[0], len(places[0]), rows[1], len(places[1]), least, what="pairs by pixels", progress=progress
    )
    return [
        ("bytes", equal_keys(a.encoded, b.encoded, what="files")),
        ("pixels", equal_keys(a.pixels, b.pixels, what="pictures")),
        ("near", Pairs(places[0][alike.a], places[1][alike.b], ((1 + alike.score) / 2).astype(np.float32))),
    ]


def same_embeddings(a: Embedded, b: Embedded, above: float, *, progress: bool = True) -> list[tuple[str, Pairs]]:
    """Pictures whose embeddings have a cosine above ``above``."""
    alike = pairs_above(
        unit_rows(a.rows), len(a.rows), unit_rows(b.rows), len(b.rows), above, what="pictures", progress=progress
    )
    return [("embedding", Pairs(a.images[alike.a], b.images[alike.b], alike.score))]


def same_identities(
    means: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]], threshold: float, *, progress: bool = True
) -> Pairs:
    """Identities of which the mean cosine of all pairs of pictures is above the threshold."""
    left, right = means
    return pairs_above(
        as_block(left), len(left), as_block(right), len(right), threshold, what="identities", progress=progress
    )


def compare(
    a: EncodedImages,
    b: EncodedImages,
    pictures: list[tuple[str, Pairs]],
    by_embedding: Pairs | None,
    means: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None,
    embedded: tuple[Embedded, Embedded] | None,
) -> Found:
    """Put together what was found.

    Args:
        a: the first set.
        b: the second.
        pictures: pairs of pictures by kind, the surest first.
        by_embedding: pairs of identities by their embeddings; None without an embedder.
        means: of the identities of both, likewise.
        embedded: the embeddings of both, likewise.
    """
    alike, how = strongest(*pictures) if pictures else (Pairs.none(), np.zeros(0, np.str_))
    shared = _by_pictures(a, b, alike)
    identities, kinds = strongest(("embedding", by_embedding or Pairs.none()), ("pictures", shared))
    names = _named_alike(a, b, identities, means)
    return Found(
        pictures=alike,
        picture_how=how,
        identities=identities,
        identity_how=kinds,
        names=names,
        examples=_examples(a, b, identities, embedded),
        name_examples=_examples(a, b, names, embedded),
    )


def _by_pictures(a: EncodedImages, b: EncodedImages, alike: Pairs) -> Pairs:
    """Identities of which enough pictures are in the other one."""
    if not len(alike.a):
        return Pairs.none()
    both = np.stack([a.labels[alike.a], b.labels[alike.b]], axis=1)
    pairs, of = np.unique(both, axis=0, return_inverse=True)
    of = of.reshape(-1)
    shares = []
    for column, (images, places) in enumerate(((a, alike.a), (b, alike.b))):
        once = np.unique(np.stack([of, places], axis=1), axis=0)[:, 0]
        sizes = np.bincount(images.labels, minlength=images.num_classes)[pairs[:, column]]
        shares.append(np.bincount(once, minlength=len(pairs)) / sizes)
    score = np.maximum(*shares).astype(np.float32)
    kept = score >= SHARED
    return Pairs(pairs[kept, 0], pairs[kept, 1], score[kept])


def _named_alike(
    a: EncodedImages,
    b: EncodedImages,
    known: Pairs,
    means: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None,
) -> Pairs:
    """Identities of one name that are not known to be one. Numbers are no names: every set has a class 0."""
    if a.identities.dtype.kind in "iu" or b.identities.dtype.kind in "iu":
        return Pairs.none()
    there = {name: number for number, name in enumerate(b.identities.tolist())}
    pairs = [(here, there[name]) for here, name in enumerate(a.identities.tolist()) if name in there]
    joined = set(zip(known.a.tolist(), known.b.tolist(), strict=True))
    left = np.array([pair for pair in pairs if pair not in joined], np.int64).reshape(-1, 2)
    score = np.full(len(left), np.nan, np.float32)
    if means is not None:
        score = np.einsum("nd,nd->n", means[0][left[:, 0]], means[1][left[:, 1]])
    return Pairs(left[:, 0], left[:, 1], score)


def _examples(
    a: EncodedImages, b: EncodedImages, pairs: Pairs, embedded: tuple[Embedded, Embedded] | None
) -> npt.NDArray[np.int64]:
    """A picture of each identity of each pair."""
    out = np.zeros((len(pairs.a), 2), np.int64)
    groups = []
    for images in (a, b):
        order = np.argsort(images.labels, kind="stable")
        groups.append((order, np.searchsorted(images.labels[order], np.arange(images.num_classes + 1))))
    for row, both in enumerate(zip(pairs.a.tolist(), pairs.b.tolist(), strict=True)):
        of = [
            order[ends[label] : ends[label + 1]][:_LOOKED_AT] for label, (order, ends) in zip(both, groups, strict=True)
        ]
        out[row] = [of[0][0], of[1][0]]
        if embedded is not None and row < _MOST_SEARCHED:
            out[row] = _most_alike(embedded, of, out[row])
    return out


def _most_alike(
    embedded: tuple[Embedded, Embedded], of: list[npt.NDArray[np.int64]], otherwise: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    rows = [np.flatnonzero(np.isin(of_a_set, data.images)) for data, of_a_set in zip(embedded, of, strict=True)]
    if not len(rows[0]) or not len(rows[1]):
        return otherwise
    kept = [pictures[row] for pictures, row in zip(of, rows, strict=True)]
    left, right = (
        unit_rows(data.rows)(np.searchsorted(data.images, pictures))  # type: ignore[arg-type]
        for data, pictures in zip(embedded, kept, strict=True)
    )
    best = int((left @ right.T).argmax())
    return np.array([kept[0][best // len(kept[1])], kept[1][best % len(kept[1])]])
