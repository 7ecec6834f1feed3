"""Parts of a data set, as the names of files and folders tell them: splits, and the shards of one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning_pfc.data.errors import FormatError

# As Hugging Face's library tells splits by the names of files.
_SHARD = re.compile(r"(?:^|/)data/(?P<split>[\w.]+?)-\d{5}-of-\d{5}\.\w+$")
_NUMBERED = re.compile(r"(?P<name>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_ANY_WORD = frozenset(word for words in _WORDS.values() for word in words)


def split_of(name: str) -> str | None:
    """The split that the name of a file says, a relative path with ``/``; None if it says none."""
    if match := _SHARD.search(name):
        return match["split"]
    for split, words in _WORDS.items():
        if re.search(rf"(^|[./_\- 0-9])({'|'.join(words)})([./_\- 0-9]|$)", name, re.IGNORECASE):
            return split
    return None


def refuse_several_splits(names: Iterable[str], path: str | os.PathLike[str], way_out: str) -> None:
    """See that files that become one data set are not of several splits: what is kept for a test would be trained.

    Args:
        names: Of the files, relative to ``path``, with ``/``.
        path: The folder, for the message.
        way_out: What to do instead.

    Raises:
        FormatError: They are.
    """
    splits = sorted({split for name in names if (split := split_of(name)) is not None})
    if len(splits) > 1:
        raise FormatError(f"it holds the splits {', '.join(splits)}, which would become one set; {way_out}", path=path)


def refuse_splits_as_identities(identities: Sequence[str], images: Iterable[str], root: Path) -> None:
    """See that the folders that are taken for identities are not splits, with the identities below them.

    Args:
        identities: Names of the folders.
        images: Paths of the images, relative to ``root``.
        root: Where they lie.

    Raises:
        FormatError: They are splits.
    """
    if all(name.lower() in _ANY_WORD for name in identities) and all(name.count(os.sep) > 1 for name in images):
        found = ", ".join(sorted(set(identities)))
        raise FormatError(
            f"its folders ({found}) are splits of a data set, not identities; give one of them, such as "
            f"{root / identities[0]}",
            path=root,
        )


def refuse_missing_shards(names: Iterable[str], path: str | os.PathLike[str]) -> None:
    """See that of files ``NAME-00000-of-00003`` none is missing.

    Raises:
        FormatError: One is; names the first.
    """
    found: dict[tuple[str, str, str], set[int]] = {}
    for name in names:
        if match := _NUMBERED.fullmatch(name):
            found.setdefault((match["name"], match["count"], match["suffix"]), set()).add(int(match["number"]))
    for (name, count, suffix), numbers in found.items():
        if missing := [number for number in range(int(count)) if number not in numbers]:
            first = f"{name}-{missing[0]:05d}-of-{count}{suffix}"
            raise FormatError(f"{len(missing)} of {int(count)} shards are not there, the first is {first}", path=path)
