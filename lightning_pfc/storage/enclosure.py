"""The folders in which the names of a data set may lead to files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import BinaryIO

from lightning_pfc.storage.regular import NotRegularError, check_regular, open_file, read_regular

_REMEMBERED = 1 << 14  # folders


def as_paths(folders: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str | os.PathLike[str]]:
    """One folder or several, as a list."""
    return [folders] if isinstance(folders, str | os.PathLike) else list(folders)


class Enclosure:
    """The folders in which the names of a data set may lead to files; links inside them are followed.

    Args:
        root: the folder that relative names start from.
        allow: further folders that names and links may lead into.
    """

    def __init__(
        self, root: str | os.PathLike[str], allow: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = ()
    ) -> None:
        self.root = os.fspath(root) or os.curdir
        self.folders = [os.path.realpath(folder) for folder in (self.root, *as_paths(allow))]
        self._known: dict[str, str] = {}

    def real(self, name: str) -> str:
        """The file or folder that a name means, without links.

        Raises:
            NotRegularError: it lies outside, or is no name.
        """
        path = os.path.join(self.root, name)
        if "\0" in path:
            raise NotRegularError(f"{name!r} is no name of a file: it holds a zero byte")
        folder, base = os.path.split(path)
        if base in ("", os.curdir, os.pardir):
            return self._checked(name, os.path.realpath(path))
        real = os.path.join(self._real_folder(name, folder), base)
        return self._checked(name, os.path.realpath(real)) if os.path.islink(real) else real

    def open(self, name: str) -> BinaryIO:
        """The ordinary file that a name means; raises as :meth:`real` and ``open_regular``."""
        return open_file(self.real(name), follow=False)

    def read(self, name: str, max_bytes: int) -> bytes:
        """Its bytes; raises as :meth:`real` and ``read_regular``."""
        return read_regular(self.real(name), max_bytes, follow=False)

    def holds(self, name: str) -> bool:
        """Whether a name means a regular file inside."""
        with contextlib.suppress(OSError):
            check_regular(self.real(name))
            return True
        return False

    def _real_folder(self, name: str, folder: str) -> str:
        known = self._known.get(folder)
        if known is None:
            known = self._checked(name, os.path.realpath(folder))
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[folder] = known
        return known

    def _checked(self, name: str, real: str) -> str:
        for folder in self.folders:
            if real == folder or real.startswith(folder.rstrip(os.sep) + os.sep):
                return real
        raise NotRegularError(
            f"{name} leads to {real}, outside {' and '.join(self.folders)}; if it belongs to the data, say so: "
            f"allow={os.path.dirname(real) or real}"
        )

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_known": {}}
