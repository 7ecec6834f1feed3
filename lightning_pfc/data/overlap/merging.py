"""Two data sets as one, by a list of the identities that are in both."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from lightning_pfc.data.formats.base import EncodedImages, contiguous_labels
from lightning_pfc.data.formats.texts import text_array
from lightning_pfc.data.overlap.listing import Row

_COPIES = ("bytes", "pixels", "near")  # of these kinds one picture is enough; two alike embeddings are two pictures


@dataclass(frozen=True)
class MergeCounts:
    """What became of two sets.

    Attributes:
        images: pictures of both.
        identities: of both, each once.
        joined: identities that are in both.
        prefixed: identities that carry a prefix, since another one has their name.
        left_out: pictures of the second set that the first has, of the same identity.
        contradicting: pictures that both have, of different identities; both are kept.
    """

    images: int
    identities: int
    joined: int
    prefixed: int
    left_out: int
    contradicting: int


class MergedImages(EncodedImages):
    """The pictures of two sets, those of the first before those of the second.

    Args:
        a: the first set.
        b: the second.
        pairs: which identities of both are one, see :func:`~lightning_pfc.data.overlap.listing.read_list`.
        prefixes: put before names that both sets have for different identities, with a point.
        allow_chains: take two identities of one set for one where the list joins both to one of the other.

    Attributes:
        counts: what became of them.

    Raises:
        ValueError: the list names an identity or a picture that is not there, contradicts itself, joins two identities
            of one set, or the prefixes do not tell two names apart.
    """

    def __init__(
        self,
        a: EncodedImages,
        b: EncodedImages,
        pairs: Sequence[Row],
        *,
        prefixes: tuple[str, str],
        allow_chains: bool = False,
    ) -> None:
        self.sets = (a, b)
        self.source = f"{a.source} and {b.source}"
        joined = _Joined(a, b, pairs, allow_chains)
        names, prefixed = _names(a, b, joined, prefixes)
        own = names[: a.num_classes], names[a.num_classes :]
        copies, contradicting = _copies(a, b, pairs, joined)
        self.kept = np.setdiff1d(np.arange(len(b), dtype=np.int64), copies)
        keys = [own[0][label] for label in a.labels.tolist()]
        keys += [own[1][label] for label in b.labels[self.kept].tolist()]
        self.labels, identities = contiguous_labels(keys)
        self.identities: npt.NDArray[Any] = text_array([str(name) for name in identities.tolist()])
        self.counts = MergeCounts(
            len(self.labels), len(self.identities), joined.count, prefixed, len(copies), contradicting
        )

    def _of(self, index: int) -> tuple[int, int]:
        """The set of a picture, and its position there."""
        first = len(self.sets[0])
        return (0, index) if index < first else (1, int(self.kept[index - first]))

    @override
    def read(self, index: int) -> bytes:
        number, place = self._of(self._check_index(index))
        return self.sets[number].read(place)

    @override
    def locate(self, index: int) -> str:
        number, place = self._of(index)
        return self.sets[number].locate(place)

    @override
    def name(self, index: int) -> str:
        number, place = self._of(index)
        images = self.sets[number]
        own = images.name(place).removeprefix(f"{images.identities[images.labels[place]]}/")
        return f"{self.identities[self.labels[index]]}/{'ab'[number]}_{own}"


class _Joined:
    """Which identities are one: a number per identity of both sets, the second's behind those of the first."""

    def __init__(self, a: EncodedImages, b: EncodedImages, pairs: Sequence[Row], allow_chains: bool) -> None:
        self.first = a.num_classes
        self._numbers = [{str(name): k for k, name in enumerate(images.identities.tolist())} for images in (a, b)]
        self._names = [str(name) for images in (a, b) for name in images.identities.tolist()]
        self._root = list(range(len(self._names)))
        self.wanted = [self._pair(row) for row in pairs if row.kind == "identity"]
        for one, two in self.wanted:
            self._root[self.group(two)] = self.group(one)
        members: dict[int, list[int]] = {}
        for number in {number for pair in self.wanted for number in pair}:
            members.setdefault(self.group(number), []).append(number)
        self.count = len(members)
        for row in pairs:
            if row.kind == "different" and len({self.group(number) for number in self._pair(row)}) == 1:
                raise ValueError(
                    f"line {row.line} says that {row.identity_a!r} and {row.identity_b!r} are different, and other "
                    "lines make them one: take one of these out."
                )
        if not allow_chains:
            self._refuse_chains(members)

    def group(self, number: int) -> int:
        """The number that stands for all that are one with this one."""
        while self._root[number] != number:
            self._root[number] = self._root[self._root[number]]
            number = self._root[number]
        return number

    def _pair(self, row: Row) -> tuple[int, int]:
        numbers = []
        for known, name, which in zip(self._numbers, (row.identity_a, row.identity_b), "ab", strict=True):
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1) if len(known) < 100_000 else []
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"line {row.line} names identity_{which} {name!r}, which that set has not{hint}")
            numbers.append(known[name])
        return numbers[0], numbers[1] + self.first

    def _refuse_chains(self, members: dict[int, list[int]]) -> None:
        for numbers in members.values():
            for which, own in (
                ("first", [n for n in numbers if n < self.first]),
                ("second", [n for n in numbers if n >= self.first]),
            ):
                if len(own) > 1:
                    names = sorted(self._names[number] for number in own)
                    raise ValueError(
                        f"the list makes {len(own)} identities of the {which} set one ({names[0]!r}, {names[1]!r}, "
                        "...): take lines out, or say --chains if that set has an identity under several names."
                    )


def _names(a: EncodedImages, b: EncodedImages, joined: _Joined, prefixes: tuple[str, str]) -> tuple[list[str], int]:
    """The name of each identity of both sets, and how many have a prefix.

    Joined ones have the name of the first set; two that are not joined and have one name have a prefix each.
    """
    plain = [str(name) for images in (a, b) for name in images.identities.tolist()]
    lead: dict[int, int] = {}
    for number in range(len(plain)):
        lead.setdefault(joined.group(number), number)
    often = Counter(plain[number] for number in lead.values())
    final, prefixed = {}, 0
    for group, number in lead.items():
        name = plain[number]
        if often[name] > 1:
            name, prefixed = f"{prefixes[int(number >= joined.first)]}.{name}", prefixed + 1
        final[group] = name
    twice = [name for name, count in Counter(final.values()).items() if count > 1]
    if twice:
        raise ValueError(
            f"two identities would be called {twice[0]!r}: give other prefixes "
            f"(--prefixes {prefixes[0]}1 {prefixes[1]}2)."
        )
    return [final[joined.group(number)] for number in range(len(plain))], prefixed


def _copies(
    a: EncodedImages, b: EncodedImages, pairs: Sequence[Row], joined: _Joined
) -> tuple[npt.NDArray[np.int64], int]:
    """Pictures of the second set that the first has under the same identity, and how many it has under another."""
    copies: set[int] = set()
    others: set[int] = set()
    for row in pairs:
        if row.kind != "picture" or row.how not in _COPIES or row.image is None or row.image_b is None:
            continue
        for images, image, name in ((a, row.image, row.identity_a), (b, row.image_b, row.identity_b)):
            if image >= len(images) or str(images.identities[images.labels[image]]) != name:
                raise ValueError(
                    f"line {row.line}: picture {image} of {images.source} is not of {name!r}: the list was made "
                    "of other data; run pfc-data overlap again."
                )
        one, two = int(a.labels[row.image]), int(b.labels[row.image_b]) + joined.first
        (copies if joined.group(one) == joined.group(two) else others).add(row.image_b)
    return np.array(sorted(copies), np.int64), len(others - copies)


def refuse_inside(out: str | os.PathLike[str], *sources: str) -> None:
    """See that a file or folder to be written is not part of the data that are read.

    Raises:
        ValueError: it lies in one of the sets.
    """
    place = Path(os.path.realpath(out))
    for source in sources:
        folder = Path(os.path.realpath(source))
        if os.path.isdir(folder) and (folder == place or folder in place.parents):
            raise ValueError(f"{out} lies in {source}, and would become part of it: write elsewhere.")


def refuse_same(a: EncodedImages, b: EncodedImages) -> None:
    """See that two sets are two.

    Raises:
        ValueError: they lie at one place.
    """
    if os.path.realpath(a.source) == os.path.realpath(b.source):
        raise ValueError(
            f"both sets are {a.source}: pfc-data check finds what a set has twice, pfc-data clean classes that are one."
        )
