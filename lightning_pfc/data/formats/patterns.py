"""Paths with signs in them: the files that a pattern stands for, and why a path leads to nothing."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence

from lightning_pfc.data.entries import is_hidden
from lightning_pfc.data.errors import missing_library
from lightning_pfc.storage.enclosure import Enclosure

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
_SIGNS = re.compile(r"[*?\[{]")
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+]*://")


def is_pattern(path: str | os.PathLike[str]) -> bool:
    """Whether a path that is not there as it stands has signs (``* ? [ {``) of a pattern."""
    return _SIGNS.search(os.fspath(path)) is not None and not os.path.lexists(path)


def files_of(pattern: str, allow: Paths) -> list[str]:
    """The files that a pattern stands for, sorted; links among them may not lead away from the folder before its signs.

    Raises:
        MissingLibraryError: it has braces, and webdataset is not installed.
        NotRegularError: a link leads out.
    """
    if "{" in pattern:
        try:
            from webdataset.shardlists import expand_urls
        except ImportError as error:
            raise missing_library("webdataset", "Reading shards named with braces") from error
        return [
            path for item in expand_urls(pattern) for path in (files_of(item, allow) if is_pattern(item) else [item])
        ]
    return inside(os.path.dirname(_SIGNS.split(pattern, maxsplit=1)[0]), glob.glob(pattern), allow)


def inside(root: str, found: list[str], allow: Paths) -> list[str]:
    """Those of some paths that are not hidden, sorted; each is seen to lie below ``root``.

    Raises:
        NotRegularError: a link leads out.
    """
    enclosure = Enclosure(root or os.curdir, allow)
    files = sorted(path for path in found if not is_hidden(os.path.basename(path)))
    for path in files:
        enclosure.real(os.path.relpath(path, enclosure.root))
    return files


def nothing_at(path: str | os.PathLike[str], what: str = "file or folder") -> FileNotFoundError:
    """The error for a path that leads to nothing, with the way out where its signs tell it.

    Args:
        path: as the user gave it.
        what: was looked for.
    """
    text, way_out = os.fspath(path), ""
    if _ADDRESS.match(text):
        way_out = (
            "; it is an address, and data are read from files: fetch it first. A data set of the Hugging Face hub is "
            "given as OWNER/NAME with the format huggingface"
        )
    elif not text.strip():
        way_out = "; the path is empty: a variable that is not set?"
    elif text.startswith("~") and os.path.exists(os.path.expanduser(text)):
        way_out = f"; ~ stands for your home in a shell's own words alone: give {os.path.expanduser(text)}"
    elif "$" in text:
        way_out = "; it holds $, which a shell replaces outside of single quotes alone"
    elif is_pattern(text):
        folder = os.path.dirname(_SIGNS.split(text, maxsplit=1)[0])
        way_out = (
            f"; it is a pattern. Patterns stand for shards (.tar, .parquet, .arrow); of other data give one file, or "
            f"the folder, such as {folder or os.curdir}"
        )
    return FileNotFoundError(f"no such {what}: {text}{way_out}")
