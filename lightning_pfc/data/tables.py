"""Tables of text with a line of names first: tabs between the columns, or commas in a ``.csv``.

A cell with a tab, a quote or an end of line stands in quotes. Bytes that are no UTF-8, as names of files may have,
survive.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lightning_pfc.data.errors import reading
from lightning_pfc.storage.regular import read_regular
from lightning_pfc.storage.whole_files import write_whole

_MAX_TABLE = 1 << 30  # bytes


def delimiter_of(path: str | os.PathLike[str]) -> str:
    """What stands between the columns."""
    return "," if Path(path).suffix.lower() == ".csv" else "\t"


def write_table(path: str | os.PathLike[str], columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with write_whole(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter_of(path), lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def read_table(path: str | os.PathLike[str], what: str, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The lines of a table: the number of each in the file, and its cells by column. Empty lines are left out.

    Args:
        path: of the table.
        what: it should be, such as ``"a list of pairs"``.
        needed: columns that it must have.

    Raises:
        FormatError: it is not there, or cannot be read.
        ValueError: it is no table, or a column is missing; names the line.
    """
    with reading(path, what):
        text = read_regular(path, _MAX_TABLE).decode("utf-8-sig", errors="surrogateescape")
    # strict: a quote that nobody closes would swallow the lines after it without a word
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter_of(path), strict=True)
    try:
        columns = next(reader, [])
        if missing := [name for name in needed if name not in columns]:
            raise ValueError(f"{path}: the first line must name a column {missing[0]}, found {columns[:5]}.")
        for cells in reader:
            if any(cells):
                yield reader.line_num, dict(zip(columns, cells, strict=False))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: no line of a table: {error}.") from error
