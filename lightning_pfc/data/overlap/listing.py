"""The list of what two sets have in common: written for people and for ``pfc-data merge``, and read again."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lightning_pfc.data.formats.base import EncodedImages
from lightning_pfc.data.overlap.comparing import Found
from lightning_pfc.data.tables import read_table, write_table

COLUMNS = ("image", "image_b", "kind", "identity_a", "identity_b", "picture_a", "picture_b", "score", "how")
KINDS = ("identity", "different", "name", "picture", "broken")


class Row(NamedTuple):
    """A line of a list.

    Attributes:
        line: its number in the file.
        kind: ``identity`` (one person), ``different`` (two, says the user), ``name``, ``picture``, ``broken``.
        identity_a, identity_b: names in either set.
        image, image_b: positions in either set, of pictures; None elsewhere.
        how: by what they were found.
    """

    line: int
    kind: str
    identity_a: str
    identity_b: str
    image: int | None = None
    image_b: int | None = None
    how: str = ""


def place_of(images: EncodedImages, image: int) -> str:
    """Where a picture lies, below the set's folder if it is one."""
    place = images.locate(image)
    return os.path.relpath(place, images.source) if os.path.isdir(images.source) else place


def write_list(
    path: str | os.PathLike[str],
    a: EncodedImages,
    b: EncodedImages,
    found: Found,
    broken: tuple[list[tuple[int, str]], list[tuple[int, str]]] = ([], []),
) -> None:
    """Write the list, whole or not at all: tabs between the columns, or commas in a ``.csv``."""
    _check_name(path)
    write_table(
        path, COLUMNS, itertools.chain(_rows(a, b, found), _broken_rows(a, broken[0], 0), _broken_rows(b, broken[1], 1))
    )


def _broken_rows(images: EncodedImages, reasons: list[tuple[int, str]], column: int) -> Iterator[list[str]]:
    for image, reason in reasons:
        pair = ["", ""], ["", ""], ["", ""]
        pair[0][column], pair[1][column] = str(image), str(images.identities[images.labels[image]])
        pair[2][column] = place_of(images, image)
        yield [*pair[0], "broken", *pair[1], *pair[2], "", " ".join(reason.split())]


def _rows(a: EncodedImages, b: EncodedImages, found: Found) -> Iterator[list[str]]:
    for kind, pairs, examples, how in (
        ("identity", found.identities, found.examples, found.identity_how.tolist()),
        ("name", found.names, found.name_examples, ["name"] * len(found.names.a)),
    ):
        for k, (one, two, score) in enumerate(zip(*(column.tolist() for column in pairs), strict=True)):
            shown = [place_of(a, int(examples[k, 0])), place_of(b, int(examples[k, 1]))]
            yield ["", "", kind, str(a.identities[one]), str(b.identities[two]), *shown, _number(score), how[k]]
    for k, (one, two, score) in enumerate(zip(*(column.tolist() for column in found.pictures), strict=True)):
        names = [str(a.identities[a.labels[one]]), str(b.identities[b.labels[two]])]
        places = [place_of(a, one), place_of(b, two)]
        yield [str(one), str(two), "picture", *names, *places, _number(score), str(found.picture_how[k])]


def _number(score: float) -> str:
    return "" if math.isnan(score) else f"{score:.4f}"


def _check_name(path: str | os.PathLike[str]) -> None:
    if Path(path).suffix.lower() not in (".tsv", ".csv"):
        raise ValueError(f"{path}: a list is written as .tsv or .csv; name it so")


def read_list(path: str | os.PathLike[str]) -> list[Row]:
    """A list as :func:`write_list` writes it, or any table with the columns ``identity_a`` and ``identity_b``.

    Without a column ``kind`` each line is a pair that is one identity.

    Raises:
        FormatError: it is not there, or no text.
        ValueError: a column is missing, a kind is unknown, or a position is no number; names the line.
    """
    _check_name(path)
    lines = read_table(path, "a list of pairs", ("identity_a", "identity_b"))
    return [_row(path, number, cells) for number, cells in lines]


def _row(path: str | os.PathLike[str], line: int, cells: dict[str, str]) -> Row:
    kind = cells.get("kind", "identity")
    if kind not in KINDS:
        raise ValueError(f"{path}, line {line}: kind {kind!r} is none of {', '.join(KINDS)}.")
    places = []
    for column in ("image", "image_b"):
        cell = cells.get(column, "")
        if cell and not (cell.isascii() and cell.isdigit()):
            raise ValueError(f"{path}, line {line}: {column} {cell!r} is not the position of a picture.")
        places.append(int(cell) if cell else None)
    if kind in ("identity", "different") and not (cells.get("identity_a") and cells.get("identity_b")):
        raise ValueError(f"{path}, line {line}: a pair needs both identity_a and identity_b.")
    names = cells.get("identity_a", ""), cells.get("identity_b", "")
    return Row(line, kind, *names, places[0], places[1], cells.get("how", ""))
