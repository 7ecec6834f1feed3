"""What SQLite does to its files, in order, and what would be left of it after a power cut.

A killed process loses nothing that it wrote: the page cache has it. A power cut loses what was not synced. This
replaces methods of SQLite's own file system layer, in the library that Python's ``sqlite3`` works with, by ones that
note what they do and then do it; nothing is compiled.
"""

from __future__ import annotations

import ctypes
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_METHODS = 18  # pointers after the version in the third version of sqlite3_io_methods
_WRITE, _TRUNCATE, _SYNC = 2, 3, 4
_SECTOR = 512


@dataclass(frozen=True)
class Event:
    """One thing that happened: "write", "truncate", "sync", "delete" or "note".

    Attributes:
        kind: which.
        file: name of the file, without its folder; for a note, its text.
        start: first byte written, or the length that is left.
        data: what was written.
    """

    kind: str
    file: str
    start: int = 0
    data: bytes = b""


class _Vfs(ctypes.Structure):
    _fields_ = [
        ("version", ctypes.c_int),
        ("file_size", ctypes.c_int),
        ("path_size", ctypes.c_int),
        ("following", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("open", ctypes.c_void_p),
        ("delete", ctypes.c_void_p),
    ]


class _Methods(ctypes.Structure):
    _fields_ = [("version", ctypes.c_int), ("methods", ctypes.c_void_p * _METHODS)]


# paths go on as pointers: SQLite keeps them, and what it was told about the file lies behind their ends
_Open = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
_Delete = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
_Write = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64)
_Truncate = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)
_Sync = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)


def library() -> ctypes.CDLL | None:
    """The SQLite that ``sqlite3`` works with, or None where it cannot be found."""
    import _sqlite3  # noqa: F401  (maps it)

    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    for path in dict.fromkeys(line.split()[-1] for line in lines if "sqlite3" in line):
        found = ctypes.CDLL(path)
        if hasattr(found, "sqlite3_vfs_find"):
            return found
    return None


class Recorder:
    """Notes what is done to files opened from now on, in this process, until it ends.

    Attributes:
        events: in order.
    """

    def __init__(self) -> None:
        sqlite = library()
        assert sqlite is not None
        sqlite.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
        self.events: list[Event] = []
        self._names: dict[int, str] = {}
        self._patched: dict[int, Any] = {}
        self._keep: list[Any] = []
        vfs = sqlite.sqlite3_vfs_find(None).contents
        self._real_open, self._real_delete = _Open(vfs.open), _Delete(vfs.delete)
        vfs.open, vfs.delete = self._pointer(_Open(self._open)), self._pointer(_Delete(self._delete))

    def note(self, text: str) -> None:
        """Something of the caller's own, such as an answer that was given."""
        self.events.append(Event("note", text))

    def _pointer(self, function: Any) -> int | None:
        self._keep.append(function)
        return ctypes.cast(function, ctypes.c_void_p).value

    def _open(self, vfs: int, path: int | None, file: int, flags: int, out: int) -> int:
        status = self._real_open(vfs, path, file, flags, out)
        if status == 0 and path is not None:
            self._names[file] = _base(path)
            place = ctypes.cast(file, ctypes.POINTER(ctypes.c_void_p))
            real = place[0]
            assert real is not None
            if real not in self._patched:
                self._patched[real] = self._methods(real)
            place[0] = ctypes.addressof(self._patched[real])
        return status

    def _methods(self, real: int) -> _Methods:
        theirs = _Methods.from_address(real)
        mine = _Methods(theirs.version, theirs.methods)
        write = _Write(theirs.methods[_WRITE])
        truncate, sync = _Truncate(theirs.methods[_TRUNCATE]), _Sync(theirs.methods[_SYNC])

        def noted_write(file: int, data: int, size: int, start: int) -> int:
            self.events.append(Event("write", self._names[file], start, ctypes.string_at(data, size)))
            return int(write(file, data, size, start))

        def noted_truncate(file: int, size: int) -> int:
            self.events.append(Event("truncate", self._names[file], size))
            return int(truncate(file, size))

        def noted_sync(file: int, flags: int) -> int:
            status = int(sync(file, flags))
            self.events.append(Event("sync", self._names[file]))
            return status

        mine.methods[_WRITE] = self._pointer(_Write(noted_write))
        mine.methods[_TRUNCATE] = self._pointer(_Truncate(noted_truncate))
        mine.methods[_SYNC] = self._pointer(_Sync(noted_sync))
        return mine

    def _delete(self, vfs: int, path: int, sync: int) -> int:
        self.events.append(Event("delete", _base(path)))
        return int(self._real_delete(vfs, path, sync))


def after_power_cut(
    before: dict[str, bytes], events: Sequence[Event], survives: Callable[[], bool] = lambda: False
) -> dict[str, bytes]:
    """Files as a disk may have them when the power went after ``events``.

    Args:
        before: files on the disk at the beginning, by name.
        events: what was done.
        survives: asked for each sector of a write, each truncation and each deletion that no sync followed: whether
            it reached the disk all the same. By default none did.

    Returns:
        The files by name.
    """
    synced = {event.file: i for i, event in enumerate(events) if event.kind == "sync"}
    files = {name: bytearray(data) for name, data in before.items()}
    for i, event in enumerate(events):
        kept = i < synced.get(event.file, -1)
        if event.kind == "write":
            for first in range(0, len(event.data), _SECTOR):
                if kept or survives():
                    _put(files.setdefault(event.file, bytearray()), event.start + first, event.data[first:][:_SECTOR])
        elif event.kind == "truncate" and event.file in files and (kept or survives()):
            del files[event.file][event.start :]
        elif event.kind == "delete" and (kept or survives()):
            files.pop(event.file, None)
    return {name: bytes(data) for name, data in files.items()}


def sometimes(seed: int, probability: float = 0.5) -> Callable[[], bool]:
    """For ``survives``: each by chance."""
    chance = random.Random(seed)
    return lambda: chance.random() < probability


def _base(path: int) -> str:
    return os.path.basename(os.fsdecode(ctypes.string_at(path)))


def _put(file: bytearray, start: int, data: bytes) -> None:
    if len(file) < start:
        file.extend(bytes(start - len(file)))
    file[start : start + len(data)] = data
