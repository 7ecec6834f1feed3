"""Whose centers they are: the names of a head's classes in a checkpoint, and whether they are those of some data.

In a checkpoint folder the names are a file of their own, in the file of one process they are inside that file: UTF-8, a
zero byte behind each, in the order of the rows. They are written and compared in a stream.
"""

from __future__ import annotations

import hashlib
import itertools
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lightning_pfc.checkpoint.blocks import BlockReader, BlockWriter
from lightning_pfc.checkpoint.errors import CheckpointError
from lightning_pfc.checkpoint.manifest import Manifest
from lightning_pfc.checkpoint.manifest_entries import FileEntry

NAMES_FILE = "identities.names"
KEY = "identities"  # of the manifest's facts, and of what a file of one process holds
UNNAMED = ""  # of a class that was added, and nobody said whose it is: whoever stands at its place in the data
_AT_ONCE = 1 << 14
_PIECE = 1 << 20
_MOST_OF_A_NAME = 1 << 16


class _Names(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> str: ...


class Identities:
    """The names of classes, in the order of their rows.

    Args:
        count: how many.
        blocks: gives them as bytes, from the first on, each time that it is called.
        digest: SHA-256 of these bytes; None has it found when it is needed.
    """

    def __init__(self, count: int, blocks: Callable[[], Iterator[Any]], digest: str | None = None) -> None:
        self.count = count
        self.blocks = blocks
        self._known = digest

    @staticmethod
    def of(names: _Names) -> Identities:
        """Of a sequence, which need not be a list; looked at only when it is written or compared."""
        return Identities(len(names), lambda: _encoded(names[row] for row in range(len(names))))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the names."""
        if self._known is not None:
            return self._known
        found = hashlib.sha256()
        for block in self.blocks():
            found.update(block)
        return found.hexdigest()

    def __iter__(self) -> Iterator[str]:
        """The names.

        Raises:
            CheckpointError: if there are more or fewer than ``count``, or what is there are no names.
        """
        rest, found = b"", 0
        for block in self.blocks():
            *whole, rest = (rest + bytes(block)).split(b"\0")
            if len(rest) > _MOST_OF_A_NAME:
                break
            found += len(whole)
            if found > self.count:
                break
            yield from (name.decode("utf-8", "surrogateescape") for name in whole)
        if rest or found != self.count:
            raise CheckpointError(f"the names of classes are damaged: {self.count} are said to be there.")

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifest says of them."""
        return {"count": self.count, "digest": self.digest}

    def write(self, folder: Path) -> tuple[str, FileEntry]:
        """Write their file into a checkpoint folder."""
        with BlockWriter(folder / NAMES_FILE) as file:
            for block in self.blocks():
                file.write(block)
        return NAMES_FILE, file.entry()

    def as_values(self) -> dict[str, Any]:
        """What the file of one process holds; ``names`` is (bytes,) uint8."""
        content = bytearray().join(bytes(block) for block in self.blocks())
        names = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
        return {**self.facts, "names": names}


def in_folder(folder: Path, manifest: Manifest | None = None) -> Identities | None:
    """The names in a checkpoint folder; None if it has none.

    Raises:
        CheckpointError: if what it says of them makes no sense.
    """
    manifest = manifest or Manifest.read(folder)
    facts = manifest.info.get(KEY)
    if facts is None:
        return None
    count, digest = _checked(facts, str(folder))
    if NAMES_FILE not in manifest.files:
        raise CheckpointError(f"{folder} has no file {NAMES_FILE}, and says that it knows the names of its classes.")
    entry = manifest.files[NAMES_FILE]

    def blocks() -> Iterator[bytes]:
        with BlockReader(folder, NAMES_FILE, entry) as file:
            for start in range(0, entry.size, _PIECE):
                part = bytearray(min(_PIECE, entry.size - start))
                file.read_into(start, memoryview(part))
                yield bytes(part)

    return Identities(count, blocks, digest)


def in_values(own: Any, where: str) -> Identities | None:
    """The names in the file of one process; None if it has none.

    Args:
        own: what this package has added to the checkpoint.
        where: names the checkpoint, for messages.

    Raises:
        CheckpointError: if they make no sense.
    """
    facts = own.get(KEY) if isinstance(own, Mapping) else None
    if facts is None:
        return None
    count, digest = _checked(facts, where)
    names = facts.get("names")
    if not isinstance(names, Tensor) or names.dtype != torch.uint8 or names.dim() != 1:
        raise CheckpointError(f"{where} cannot be used: the names of its classes are no text.")
    pieces = range(0, len(names), _PIECE)
    return Identities(count, lambda: (np.asarray(names[start : start + _PIECE]).tobytes() for start in pieces), digest)


def difference(there: Identities, here: Identities) -> str | None:
    """What is different between the classes of a checkpoint and those of some data; None if nothing is.

    A class that has no name in the checkpoint (:data:`UNNAMED`) is anybody's.

    Returns:
        The first class that differs, with its number and both names.
    """
    if there.count == here.count and there.digest == here.digest:
        return None
    for row, (old, new) in enumerate(itertools.zip_longest(there, here)):
        if old != new and not (old == UNNAMED and new is not None):
            if old is None:
                found = f"is not in the checkpoint and is {new!r} in the data"
            elif old == UNNAMED:
                found = "has no name in the checkpoint and is not in the data"
            else:
                found = f"is {old!r} in the checkpoint and {'is not' if new is None else repr(new)} in the data"
                if new is not None and composed(old) == composed(new):
                    found += f", which look alike: accents are written as {old!a} there and as {new!a} here"
            return f"class {row} {found} ({there.count} classes there, {here.count} here)"
    return None


def composed(name: str) -> str:
    """A name with its accents in the letters (NFC): some systems write files' names with accents behind them (NFD)."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _encoded(names: Iterable[str]) -> Iterator[bytes]:
    names = iter(names)
    while part := list(itertools.islice(names, _AT_ONCE)):
        # No name of a file has a zero byte; in one of a table it is shown, so that names do not run together.
        yield b"".join(name.replace("\0", "\\0").encode("utf-8", "surrogateescape") + b"\0" for name in part)


def encoded_names(names: Callable[[], Iterable[str]], count: int) -> Identities:
    """Of names that are made anew each time that they are asked for."""
    return Identities(count, lambda: _encoded(names()))


def _checked(facts: Any, where: str) -> tuple[int, str]:
    count, digest = (facts.get("count"), facts.get("digest")) if isinstance(facts, Mapping) else (None, None)
    if type(count) is not int or count < 0 or not isinstance(digest, str):
        raise CheckpointError(f"{where} cannot be used: what it says of the names of its classes makes no sense.")
    return count, digest
