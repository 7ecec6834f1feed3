"""Names of classes that somebody types or keeps in a file: one line each, and no two the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_pfc.storage.regular import open_regular


def read_names(path: Path | None, total: int) -> list[str] | None:
    """Line i names class i; None without a file.

    Raises:
        OSError: it is no ordinary file.
        ValueError: it has another number of lines, one that is empty, or the same twice.
    """
    if path is None:
        return None
    with open(open_regular(path), encoding="utf-8", errors="surrogateescape") as file:
        names = [line.removesuffix("\n") for line in file]
    if len(names) != total:
        raise ValueError(f"{path} has {len(names)} lines for {total} classes.")
    check_lines(names, str(path))
    check_alone(names, str(path))
    return names


def check_lines(names: Sequence[str], where: str) -> None:
    """See that every name is one line that is not empty.

    Raises:
        ValueError: naming the first that is not.
    """
    for row, name in enumerate(names):
        if not name.strip() or name.splitlines() != [name]:
            raise ValueError(f"{where}: name {row} is {name!r}; a name is one line that is not empty.")


def check_alone(names: Sequence[str], where: str) -> None:
    """See that no two classes have one name: whose row is meant would be a matter of luck. Several may have none.

    Raises:
        ValueError: naming the first two.
    """
    first: dict[str, int] = {}
    for row, name in enumerate(names):
        if name and first.setdefault(name, row) != row:
            raise ValueError(
                f"{where}: classes {first[name]} and {row} are both named {name!r}. Give each a name of its own; "
                f"`fuse --classes {first[name]},{row}`, without --identities, makes one of the two."
            )
