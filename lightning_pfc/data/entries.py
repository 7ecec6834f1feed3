"""The entries of a folder of data: what is data in it, and what file managers and archives leave behind."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator

from lightning_pfc.storage.enclosure import Enclosure
from lightning_pfc.storage.regular import NotRegularError

_LEFT_BEHIND = frozenset(
    (
        "__macosx",
        "@eadir",
        "@recently-snapshot",
        "@recycle",
        "@sharebin",
        "@tmp",
        "__pycache__",
        "_gsdata_",
        "~snapshot",
        "#recycle",
        "#snapshot",
        "$extend",
        "$recycle.bin",
        "recycled",
        "recycler",
        "network trash folder",
        "temporary items",
        "system volume information",
        "lost+found",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
    )
)
_FOUND = re.compile(r"found\.\d{3}")  # of chkdsk


def is_hidden(name: str) -> bool:
    """Whether an entry is no data: its name begins with a dot or ``~$``, or is one that systems leave behind."""
    lower = name.lower()
    return name.startswith((".", "~$")) or lower in _LEFT_BEHIND or _FOUND.fullmatch(lower) is not None


def is_hidden_path(path: str) -> bool:
    """Whether a relative path has a hidden entry in it."""
    return any(is_hidden(part) for part in path.replace(os.sep, "/").split("/") if part not in ("", ".", ".."))


def folders_in(inside: Enclosure) -> list[str]:
    """Names of the folders directly in the root, sorted; links to folders are among them.

    Raises:
        NotRegularError: a link leads out of the enclosure.
    """
    names = [entry.name for entry in _visible(inside.root) if _is_folder(inside, entry, entry.name)]
    return sorted(names)


def files_below(inside: Enclosure, folder: str, suffixes: Collection[str]) -> Iterator[str]:
    """Files at any depth with one of the suffixes, in the order of their names; paths relative to the root.

    Hidden entries are left out. Links to folders are followed inside the enclosure; links to files and what is no
    regular file are listed, and refused when they are read.

    Args:
        inside: where links may lead.
        folder: where to begin, relative to the root (``""`` for the root).
        suffixes: in small letters, with the dot.

    Raises:
        NotRegularError: a link leads out of the enclosure, or to a folder that the walk is in or was in.
    """
    start = os.path.realpath(os.path.join(inside.root, folder)) if folder else os.path.realpath(inside.root)
    yield from _walk(inside, folder, start, suffixes, {start})


def _walk(inside: Enclosure, folder: str, real: str, suffixes: Collection[str], seen: set[str]) -> Iterator[str]:
    for entry in sorted(_visible(os.path.join(inside.root, folder)), key=lambda entry: entry.name):
        path = os.path.join(folder, entry.name)
        if _is_folder(inside, entry, path):
            below = inside.real(path) if entry.is_symlink() else os.path.join(real, entry.name)
            if below in seen:
                raise NotRegularError(
                    f"the link {os.path.join(inside.root, path)} leads to {below}, which is read already"
                )
            seen.add(below)
            yield from _walk(inside, path, below, suffixes, seen)
        elif os.path.splitext(entry.name)[1].lower() in suffixes:
            yield path


def _visible(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not is_hidden(entry.name)]


def _is_folder(inside: Enclosure, entry: os.DirEntry[str], path: str) -> bool:
    if entry.is_symlink() and entry.is_dir():
        inside.real(path)  # refuses one that leads outside, before it is looked into
        return True
    return entry.is_dir(follow_symlinks=False)
