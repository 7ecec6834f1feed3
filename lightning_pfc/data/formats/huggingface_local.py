"""Hugging Face data sets on this machine, read without the library: nothing is cached, nothing in them is followed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lightning_pfc.data.entries import files_below
from lightning_pfc.data.errors import FormatError, reading
from lightning_pfc.data.parts import refuse_missing_shards, split_of
from lightning_pfc.storage.enclosure import Enclosure
from lightning_pfc.storage.yaml_texts import parse_yaml

_MAX_JSON = 1 << 28  # bytes; names of classes lie in it
_TABLES = (".parquet", ".arrow")
_CARDS = ("README.md", ".huggingface.yaml")


class Local(NamedTuple):
    """The files of a split, and what is known of its columns.

    Attributes:
        files: Arrow or Parquet files.
        features: of each column, as the library writes them; empty where the files tell.
        order: Arrow files with a column ``indices``: which rows, if not all in order.
    """

    files: list[Path]
    features: dict[str, Any]
    order: list[Path]


def is_saved(path: Path) -> bool:
    """Whether ``save_to_disk`` wrote this folder."""
    return os.path.lexists(path / "state.json") or os.path.lexists(path / "dataset_dict.json")


def read_saved(path: Path, split: str | None, inside: Enclosure) -> Local:
    """A folder of ``save_to_disk``.

    Raises:
        FormatError: it is damaged, has no such split, or names a file outside itself.
    """
    with reading(path, "a saved data set"):
        if os.path.lexists(path / "state.json"):
            return _read_state("", inside, path)
        splits = _json("dataset_dict.json", inside, path).get("splits")
        if not isinstance(splits, list) or not all(isinstance(name, str) for name in splits):
            raise FormatError("dataset_dict.json names no splits", path=path)
        return _read_state(choose_split(splits, split, path), inside, path)


def read_tables(path: Path, split: str | None, inside: Enclosure) -> Local | None:
    """A folder of Parquet files or of Arrow files; None where there are none, or a card says which of them to take.

    Raises:
        FormatError: the split is not there, or several are and none is chosen.
    """
    with reading(path, "a data set of Parquet or Arrow files"):
        names = list(files_below(inside, "", _TABLES))
        kinds = {os.path.splitext(name)[1].lower() for name in names}
        if len(kinds) != 1 or any("configs" in front_matter(path, inside, card) for card in _CARDS):
            return None
        by_split: dict[str, list[Path]] = {}
        for name in names:
            inside.real(name)
            by_split.setdefault(split_of(name.replace(os.sep, "/")) or "train", []).append(Path(inside.root) / name)
        files = by_split[choose_split(list(by_split), split, path)]
        refuse_missing_shards(map(str, files), path)
        return Local(files, {}, [])


def choose_split(splits: list[str], split: str | None, path: Path) -> str:
    """The split that is asked for, or the only one.

    Raises:
        FormatError: there is no such one, or there are several.
    """
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None or split not in splits:
        raise FormatError(f"split is {split!r}; give one of the splits {sorted(splits)}", path=path)
    return split


def check_card(path: Path, inside: Enclosure) -> None:
    """Sees that what the library will read of a folder lies in it: no address, no path that leads away.

    Raises:
        FormatError: its card names files elsewhere, or a link leads out of it.
    """
    with reading(path, "a data set"):
        for name in files_below(inside, "", _Any()):
            inside.real(name)
        for card in _CARDS:
            for text in _strings(front_matter(path, inside, card).get("configs")):
                if (
                    "://" in text
                    or "::" in text
                    or text.startswith(("/", "~", "\\"))
                    or ".." in re.split(r"[/\\]", text)
                ):
                    raise FormatError(f"{card} names {text!r}, which is not below this folder", path=path)


class _Any(tuple[str, ...]):
    """Every suffix."""

    def __contains__(self, item: object) -> bool:
        return True


def _read_state(folder: str, inside: Enclosure, path: Path) -> Local:
    if folder and (folder in (".", "..") or "/" in folder or os.sep in folder):
        raise FormatError(f"a split called {folder!r}", path=path)
    state = _json(os.path.join(folder, "state.json"), inside, path)
    info = _json(os.path.join(folder, "dataset_info.json"), inside, path)
    features = info.get("features")
    return Local(
        _files(state.get("_data_files"), folder, inside, path),
        features if isinstance(features, dict) else {},
        _files(state.get("_indices_data_files") or state.get("_indices_files") or [], folder, inside, path),
    )


def _files(listed: Any, folder: str, inside: Enclosure, path: Path) -> list[Path]:
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in listed or ()]
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in names):
        raise FormatError("state.json names no files", path=path)
    files = [Path(inside.real(os.path.join(folder, str(name)))) for name in names]
    if missing := [str(file) for file in files if not file.exists()]:
        raise FormatError(f"state.json names {missing[0]!r}, which is not there", path=path)
    return files


def _json(name: str, inside: Enclosure, path: Path) -> dict[str, Any]:
    if not os.path.lexists(inside.real(name)):
        raise FormatError(f"there is no {name} in it", path=path)
    content = json.loads(inside.read(name, _MAX_JSON))
    if not isinstance(content, dict):
        raise FormatError(f"{name} is no mapping", path=path)
    return content


def front_matter(path: Path, inside: Enclosure, name: str) -> dict[str, Any]:
    """The YAML of a card, of ``README.md`` that between its first lines ``---``."""
    if not os.path.lexists(path / name):
        return {}
    text = inside.read(name, _MAX_JSON).decode("utf-8", "replace")
    if name.endswith(".md"):
        match = re.match(r"\s*---\r?\n(.*?)\r?\n---", text, re.DOTALL)
        text = match[1] if match else ""
    content = parse_yaml(text)
    return content if isinstance(content, dict) else {}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)
