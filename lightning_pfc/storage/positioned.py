"""Files that are read by position: no map of them, so one that shrinks meanwhile is an error and not the end.

Reading a memory map beyond the end of its file kills the process (SIGBUS), whatever the map's owner checked before. A
read at a position gives fewer bytes instead. It copies, as taking bytes out of a map does, and costs a system call.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path

from lightning_pfc.storage.regular import check_regular, open_regular

_OPEN = 64  # files that a process keeps open


class ChangedFileError(OSError):
    """A file is not what it was when it was opened first."""


class PositionedFile:
    """A regular file, read by position. Can be pickled, and shared by forked and spawned processes and by threads.

    Args:
        path: an existing file.

    Raises:
        FileNotFoundError: nothing lies at ``path``.
        NotRegularError: what lies there is no regular file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.size = check_regular(self.path).st_size

    def __len__(self) -> int:
        return self.size

    def read(self, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop``.

        Raises:
            IndexError: they do not lie in the file as it was.
            ChangedFileError: the file has shrunk, or another one lies there now.
            OSError: the disk fails.
        """
        if not 0 <= start <= stop <= self.size:
            raise IndexError(f"bytes {start} to {stop} of {self.size}")
        held = self._open()
        found = _read(held.file, stop - start, start)
        return found if len(found) == stop - start else self._rest(held, found, start, stop)

    def gather(self, starts: Iterable[int], width: int) -> bytearray:
        """``width`` bytes from each of some places, one after the other; they must lie in the file as it was.

        Raises:
            ChangedFileError: the file has shrunk.
        """
        held = self._open()
        parts = [_read(held.file, width, start) for start in starts]
        if any(len(part) != width for part in parts):
            raise self._shrunk(held)
        return bytearray().join(parts)

    def _rest(self, held: _Held, found: bytes, start: int, stop: int) -> bytes:
        parts = [found]
        place = start + len(found)
        while place < stop:
            part = _read(held.file, stop - place, place)
            if not part:
                raise self._shrunk(held)
            parts.append(part)
            place += len(part)
        return b"".join(parts)

    def _open(self) -> _Held:
        key = (os.fspath(self.path), self.size)
        held = _held.get(key)
        if held is None:
            held = _Held(open_regular(self.path))
            if os.fstat(held.file).st_size < self.size:
                raise self._shrunk(held)
            dropped = []  # closed after the lock is free
            with _changing:
                dropped.append(_held.pop(key, None))
                _held[key] = held
                while len(_held) > _OPEN:
                    dropped.append(_held.pop(next(iter(_held))))
        return held

    def _shrunk(self, held: _Held) -> ChangedFileError:
        size = os.fstat(held.file).st_size
        return ChangedFileError(f"{self.path} has shrunk from {self.size} to {size} bytes since it was opened")


class _Held:
    """A descriptor, closed when nobody holds it any more: not while another thread still reads."""

    def __init__(self, file: int) -> None:
        self.file = file

    def __del__(self) -> None:
        os.close(self.file)


_held: dict[tuple[str, int], _Held] = {}
_changing = threading.Lock()


def _after_fork() -> None:
    global _changing  # another thread may have held it
    _changing = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


if hasattr(os, "pread"):
    _read = os.pread
else:
    _lock = threading.Lock()

    def _read(file: int, count: int, offset: int, /) -> bytes:  # pragma: no cover (Windows)
        with _lock:
            os.lseek(file, offset, os.SEEK_SET)
            return os.read(file, count)
