"""What a long job has done so far, a line for each thing, so that the same job goes on where it was interrupted."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from lightning_pfc.storage.whole_files import write_whole

_FORMAT = "lightning-pfc journal"


class Journal:
    """A text file that grows: a first line that says what the job is, then fields separated by tabs.

    A line that was cut off by a kill is dropped when the file is opened again, with all behind it.

    Args:
        path: of the file.
        job: plain values that tell this job from others: its inputs and options.

    Attributes:
        lines: what was done before.

    Raises:
        ValueError: the file there is of another job, or is none.
    """

    def __init__(self, path: str | os.PathLike[str], job: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._head = json.dumps({"format": _FORMAT, **job}, sort_keys=True)
        self.lines: list[list[str]] = self._read()
        self._file = self._opened()
        if self._file.tell() == 0:
            self._file.write(self._head + "\n")
            self.flush()

    def _opened(self) -> TextIO:
        return self.path.open("a", encoding="utf-8", errors="surrogateescape", newline="\n")

    def _read(self) -> list[list[str]]:
        if not self.path.is_file():
            return []
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        first, _, rest = whole.decode("utf-8", errors="surrogateescape").partition("\n")
        if first and first != self._head:
            raise ValueError(
                f"{self.path} was left by a job of other words or files. Take it away, or write elsewhere."
            )
        if len(whole) != len(content):
            os.truncate(self.path, len(whole))
        return [[_plain(field) for field in line.split("\t")] for line in rest.split("\n")[:-1]]

    def add(self, fields: Sequence[str]) -> None:
        """Add a line; it may stay in memory until :meth:`flush`."""
        self._file.write(_line(fields))

    def rewrite(self, lines: Iterable[Sequence[str]]) -> None:
        """Have these lines in place of all that there are."""
        self.lines = [list(line) for line in lines]
        self._file.close()
        with write_whole(self.path, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            file.write(self._head + "\n")
            file.writelines(map(_line, self.lines))
        self._file = self._opened()

    def flush(self) -> None:
        """Hand what was added to the system: it outlives the process."""
        self._file.flush()

    def close(self) -> None:
        """Close the file, which stays."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}


def mark_of(data: bytes) -> str:
    """Tells bytes from others of the same name; a job may note "" for what cannot be read."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _line(fields: Sequence[str]) -> str:
    return "\t".join(map(_escaped, fields)) + "\n"


def _escaped(field: str) -> str:
    return "".join(_ESCAPES.get(letter, letter) for letter in field).encode("utf-8", "replace").decode("utf-8")


def _plain(field: str) -> str:
    if "\\" not in field:
        return field
    parts = field.split("\\\\")
    return "\\".join(p.replace("\\t", "\t").replace("\\n", "\n").replace("\\r", "\r") for p in parts)
