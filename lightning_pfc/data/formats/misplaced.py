"""What a folder is that has no folders of images in it: one too high, one too low, or of another format."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path

from lightning_pfc.data.entries import is_hidden

SHARDS = frozenset((".tar", ".parquet", ".arrow", ".feather", ".ipc"))
LISTS = frozenset((".lst", ".tsv", ".csv", ".txt", ".rec"))
ARCHIVES = frozenset((".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"))
_MOST = 1000  # entries that are looked at


def what_lies_in(root: Path, image_suffixes: Collection[str]) -> str:
    """The way out, to go behind "no folder in it holds an image"; empty where nothing is known.

    Args:
        root: The folder.
        image_suffixes: Of files that are images, in small letters.
    """
    if any((root / name).exists() for name in ("metadata.jsonl", "metadata.csv")):
        return "; with the identities in its metadata it is data=huggingface"
    for folder in (root, *(path for path in _entries(root) if path.is_dir())):
        for path in _entries(folder):
            suffix = path.suffix.lower()
            if folder == root and suffix in image_suffixes:
                return f"; its images lie in it directly: give the folder above it, {root.resolve().parent}"
            if folder != root and suffix in SHARDS:
                return f"; give one folder of shards, such as {folder}, or a pattern, such as {folder / ('*' + suffix)}"
            if suffix in LISTS:
                return f"; give the file itself, such as {path}"
            if suffix in ARCHIVES:
                return f"; {path} is an archive: unpack it, and give the folder"
    return ""


def _entries(folder: Path) -> Iterator[Path]:
    """Of a folder, those that are no leavings of a system, in the order of their names; a thousand at most."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entry.name for entry in islice(entries, _MOST) if not is_hidden(entry.name))
    except OSError:
        return
    yield from (folder / name for name in found)
