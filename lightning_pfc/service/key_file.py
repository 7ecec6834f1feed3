"""The keys of a file, followed while the service runs."""

from __future__ import annotations

import threading
from pathlib import Path

from lightning_pfc.service.keys import KeyFileError, Keys


class KeyFile:
    """Gives the keys of now: a key that was made or removed counts from the next request on.

    Once there was a key, requests need one until the service ends: the last one that is removed, or a file that is
    gone, must not open the door to everybody.

    Args:
        path: of the file; None: there are no keys.

    Raises:
        KeyFileError: at the start, for a damaged file. Later, what was read last goes on to count.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._keys = Keys()
        self._read()

    def __call__(self) -> Keys:
        """The keys."""
        if self._path is not None and _stamp(self._path) != self._stamp:
            with self._lock:
                try:
                    self._read()
                except KeyFileError:
                    self._stamp = _stamp(self._path)
        return self._keys

    def _read(self) -> None:
        if self._path is None:
            return
        stamp = _stamp(self._path)
        if stamp is not None or not self._keys.needed:
            found = Keys.read(self._path)
            self._keys = Keys(needed=True) if self._keys.needed and not len(found) else found
        self._stamp = stamp


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
