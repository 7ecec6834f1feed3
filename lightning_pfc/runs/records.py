"""The record of a run: what its folder keeps of each start. Nothing overwrites an earlier one."""

from __future__ import annotations

import re
from pathlib import Path

from lightning_pfc.storage.whole_files import write_whole


def newest_record(folder: Path, name: str) -> Path | None:
    """The newest of ``NAME.yaml``, ``NAME_2.yaml``, ...; None if there is none."""
    found = _numbered(folder, name, ".yaml")
    return found[max(found)] if found else None


def write_record(folder: Path, name: str, text: str) -> Path:
    """Keep a text as ``NAME.yaml``, or under the next number where another start has left another one.

    Returns:
        The file that holds it.
    """
    newest = newest_record(folder, name)
    if newest is not None and newest.read_text(encoding="utf-8") == text:
        return newest
    path = folder / f"{name}.yaml" if newest is None else _next(folder, name, ".yaml", 2)
    with write_whole(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def set_aside(path: Path) -> None:
    """Give the results of an earlier start a number, so that those of this one can have the name."""
    if path.exists():
        path.rename(_next(path.parent, path.stem, path.suffix, 1))


def _next(folder: Path, name: str, suffix: str, first: int) -> Path:
    return folder / f"{name}_{max(first, max(_numbered(folder, name, suffix)) + 1)}{suffix}"


def _numbered(folder: Path, name: str, suffix: str) -> dict[int, Path]:
    """The files NAME, as 0, and NAME_1, NAME_2, ..."""
    found: dict[int, Path] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        match = re.fullmatch(rf"{re.escape(name)}(?:_(\d+))?{re.escape(suffix)}", path.name)
        if match and path.is_file():
            found[int(match[1] or 0)] = path
    return found
