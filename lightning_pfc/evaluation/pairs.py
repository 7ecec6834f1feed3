"""Pairs of images: the value, and the text files that list them."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_pfc.data.errors import FormatError, reading
from lightning_pfc.data.formats.folder import IMAGE_SUFFIXES, read_image_file
from lightning_pfc.data.formats.patterns import Paths
from lightning_pfc.metrics.functional import fold_of_pair
from lightning_pfc.storage.enclosure import Enclosure
from lightning_pfc.storage.regular import open_file

MAX_LINE = 1 << 14  # bytes
MAX_LIST = 1 << 30


class IndexedPairs(NamedTuple):
    """Pairs of images by position.

    Attributes:
        first: Position of the first image, shape (P,), int64.
        second: Position of the second image, shape (P,), int64.
        same: Whether both show one identity, shape (P,), bool.
        fold: Fold of each pair, shape (P,), int64; -1 is in no fold.
    """

    first: Tensor
    second: Tensor
    same: Tensor
    fold: Tensor


class ListedPair(NamedTuple):
    """One line of a list: two images by name, and whether they show one identity."""

    first: str
    second: str
    same: bool


def read_pairs(path: str | os.PathLike[str]) -> tuple[list[ListedPair], int]:
    """Read a list of pairs.

    Two layouts are understood. LFW's ``pairs.txt``: a first line ``folds pairs`` (or ``pairs``), then ``name i j`` for
    a genuine pair and ``name1 i name2 j`` for an impostor pair, meaning ``name/name_0001``. Or one pair a line,
    ``image1 image2 0|1``, separated by tabs, commas or spaces; in it empty lines and lines that begin with ``#`` are
    passed over.

    Args:
        path: The list, UTF-8.

    Returns:
        The pairs in file order and the number of folds (10 unless the file says otherwise).

    Raises:
        FileNotFoundError: When the list is not there.
        FormatError: When a line is none of these (names file and byte), there is no pair, or one has two answers.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no such list of pairs: {path}")
    with reading(path, "a list of pairs"):
        return _read_pairs(path)


def _read_pairs(path: str | os.PathLike[str]) -> tuple[list[ListedPair], int]:
    pairs: list[ListedPair] = []
    folds, lfw, offset, promised = 10, False, 0, 0
    with open_file(path) as file:
        while line := file.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE or offset > MAX_LIST:
                raise FormatError(f"a line is longer than {MAX_LINE} bytes; no list of pairs", path=path, offset=offset)
            try:
                text = line.decode("utf-8-sig" if offset == 0 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise FormatError(f"not UTF-8: {error.reason}", path=path, offset=offset + error.start) from error
            header = _header(text) if not pairs and not lfw else None
            if header is not None:
                folds, lfw = header, True
                promised = 2 * math.prod(map(int, text.split()))  # as many of two identities as of one
            elif text and not text.startswith("#"):
                pair = _lfw_pair(text) if lfw else _plain_pair(text)
                if pair is None:
                    raise FormatError(
                        f"expected {'`name i j` or `name1 i name2 j`' if lfw else '`image1 image2 0|1`'}, found "
                        f"{text[:80]!r}",
                        path=path,
                        offset=offset,
                    )
                pairs.append(pair)
            offset += len(line)
    if not pairs:
        raise FormatError("the list names no pair", path=path, offset=0)
    _refuse_both_answers(pairs, path)
    if promised and promised != len(pairs):
        text = f"{path} holds {len(pairs):,} pairs, and its first line says {promised:,}; was it cut short?"
        warnings.warn(text, stacklevel=2)
    return pairs, folds


def _refuse_both_answers(pairs: list[ListedPair], path: str | os.PathLike[str]) -> None:
    answers: dict[tuple[str, str], bool] = {}
    for one, other, same in pairs:
        if answers.setdefault((one, other) if one <= other else (other, one), same) != same:
            raise FormatError(f"{one} and {other} are listed as one identity and as two; leave one out", path=path)


def pairs_by_name(path: str | os.PathLike[str], names: Sequence[str], *, where: str) -> IndexedPairs:
    """A list of pairs as rows of embeddings that have names.

    Args:
        path: The list, see :func:`read_pairs`.
        names: Of the rows, with or without a suffix.
        where: What the names come from, for the message.

    Raises:
        FormatError: An image of the list is not there, or as :func:`read_pairs`.
    """
    listed, folds = read_pairs(path)
    row = {n: i for i, n in enumerate(names)}
    row.update({Path(n).with_suffix("").as_posix(): i for n, i in list(row.items())})
    missing = [n for pair in listed for n in pair[:2] if n not in row]
    if missing:
        raise FormatError(f"{len(missing)} images have no embedding in {where}, the first is {missing[0]!r}", path=path)
    count = len(listed)
    return IndexedPairs(
        torch.tensor([row[p.first] for p in listed]),
        torch.tensor([row[p.second] for p in listed]),
        torch.tensor([p.same for p in listed]),
        fold_of_pair(count, folds) if count >= folds > 1 else torch.full((count,), -1),
    )


class PairedImages:
    """The distinct images that a list of pairs names, in a folder; safe in forked and spawned workers.

    A name without a suffix is found with any of the usual image suffixes.

    Attributes:
        source: The list.
        names: Name of each image, sorted.
        identities: Identity of each image, the first folder of its name, or -1 where names have no folder, (N,) int64.

    Args:
        path: The list, see :func:`read_pairs`.
        root: Folder of the images; by default the one the list lies in.
        allow: Further folders that links in it may lead into.

    Raises:
        FileNotFoundError: When the list or the folder is not there.
        FormatError: When the list is damaged or an image is missing (names the first and how many).
    """

    def __init__(
        self, path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None, *, allow: Paths = ()
    ) -> None:
        self.source = str(path)
        listed, self._folds = read_pairs(path)
        folder = Path(root) if root is not None else Path(path).parent
        if not folder.is_dir():
            raise FileNotFoundError(f"no such folder of images: {folder}")
        self.names = sorted({name for pair in listed for name in pair[:2]})
        self._inside = Enclosure(folder, allow)
        with reading(path, "a list of pairs"):
            found = [_find(self._inside, name) for name in self.names]
        missing = [name for name, file in zip(self.names, found, strict=True) if file is None]
        if missing:
            raise FormatError(
                f"{len(missing)} of {len(self.names)} images are not in {folder}, the first is {missing[0]!r}",
                path=path,
            )
        self._files = [str(folder / file) for file in found if file is not None]
        self._names = [file for file in found if file is not None]
        position = {name: i for i, name in enumerate(self.names)}
        self._first = [position[pair.first] for pair in listed]
        self._second = [position[pair.second] for pair in listed]
        self._same = [pair.same for pair in listed]
        heads = [name.rsplit("/", 1)[0] if "/" in name else "" for name in self.names]
        numbers = {head: i for i, head in enumerate(sorted(set(heads) - {""}))}
        self.identities = np.array([numbers.get(head, -1) for head in heads], dtype=np.int64)

    @property
    def labels(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """One class per image, as a table of decoded images wants it."""
        return np.arange(len(self), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        """The encoded bytes of an image."""
        return read_image_file(self._names[index], inside=self._inside)

    def locate(self, index: int) -> str:
        """Where an image lies, for messages."""
        return self._files[index]

    def pairs(self) -> IndexedPairs:
        """The pairs, as positions of images, with contiguous folds (none if there are fewer pairs than folds)."""
        count = len(self._same)
        fold = fold_of_pair(count, self._folds) if count >= self._folds > 1 else torch.full((count,), -1)
        return IndexedPairs(torch.tensor(self._first), torch.tensor(self._second), torch.tensor(self._same), fold)


def _header(text: str) -> int | None:
    """Number of folds, if this is the first line of LFW's layout."""
    fields = text.split()
    if not 1 <= len(fields) <= 2 or not all(field.isascii() and field.isdigit() for field in fields):
        return None
    folds = int(fields[0][:6]) if len(fields) == 2 else 10
    return folds if 1 < folds <= 1000 else 10


def _lfw_pair(text: str) -> ListedPair | None:
    fields = text.split("\t") if "\t" in text else text.split()
    if len(fields) == 3:
        fields = [fields[0], fields[1], fields[0], fields[2]]
        same = True
    elif len(fields) == 4:
        same = False
    else:
        return None
    name, i, other, j = fields
    if not all(number.isascii() and number.isdigit() and len(number) < 9 for number in (i, j)):
        return None
    if not _is_inside(name) or not _is_inside(other):
        return None
    return ListedPair(f"{name}/{name}_{int(i):04d}", f"{other}/{other}_{int(j):04d}", same)


def _plain_pair(text: str) -> ListedPair | None:
    for separator in ("\t", ",", None):
        fields = [field.strip() for field in text.split(separator)]
        if len(fields) == 3 and fields[2] in ("0", "1") and _is_inside(fields[0]) and _is_inside(fields[1]):
            return ListedPair(fields[0], fields[1], fields[2] == "1")
    return None


def _is_inside(name: str) -> bool:
    """Whether a name stays in its folder."""
    parts = name.replace("\\", "/").split("/")
    return bool(name) and "\0" not in name and ".." not in parts and not name.startswith(("/", "\\"))


def _find(inside: Enclosure, name: str) -> str | None:
    """The name with its suffix, if such a file is there; it is looked at when it is read."""
    known = os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
    for suffix in ("",) if known else (".jpg", ".png", ".jpeg", *sorted(IMAGE_SUFFIXES)):
        if os.path.lexists(inside.real(name + suffix)):
            return name + suffix
    return None
