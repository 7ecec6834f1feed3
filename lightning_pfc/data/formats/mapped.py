"""A read-only memory map that can be pickled and is safe in forked and spawned workers."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from lightning_pfc.data.errors import FormatError


class MappedFile:
    """The bytes of a file, mapped when they are first read and mapped anew in every process.

    A map has no position that processes could fight over, but a forked child that keeps its parent's map also keeps
    the file open after the parent closed it; a spawned one has none. Both get their own here.

    Args:
        path: an existing file.

    Raises:
        FileNotFoundError: ``path`` is not a file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no such file: {self.path}")
        self.size = self.path.stat().st_size
        self._map: mmap.mmap | None = None
        self._pid = -1

    def view(self) -> mmap.mmap | bytes:
        """The mapped bytes (an empty file cannot be mapped: ``b""``)."""
        if self._map is not None and self._pid == os.getpid():
            return self._map
        if self.size == 0:
            return b""
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < self.size:
                # Reading a map beyond the end of its file kills the process, so a shrunken file is refused.
                raise FormatError(
                    f"the file has shrunk from {self.size} to {size} bytes since it was opened", path=self.path
                )
            self._map = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
        self._pid = os.getpid()
        return self._map

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_map": None, "_pid": -1}

    def __len__(self) -> int:
        return self.size
