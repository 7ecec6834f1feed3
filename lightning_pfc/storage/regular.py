"""Opening files that somebody else may have prepared: ordinary ones only, below a folder where one is given."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO, which would be waited for"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)

# As far as the system has them: O_BINARY is Windows', which else changes the ends of lines.
_READ = sum(getattr(os, name, 0) for name in ("O_RDONLY", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))


class NotRegularError(OSError):
    """A path is not an ordinary file, or leads out of the folder that it has to lie in."""


def open_regular(path: str | os.PathLike[str], below: str | os.PathLike[str] | None = None) -> int:
    """A file descriptor for reading an ordinary file; never waits for the other end of anything.

    Args:
        path: the file.
        below: a folder; links that lead out of it are refused. None lets links lead anywhere.

    Raises:
        NotRegularError: for a folder, a FIFO, a device or a socket, or a link out of ``below``.
        OSError: if it cannot be opened.
    """
    if below is not None:
        refuse_outside(path, below)
    try:
        handle = os.open(path, _READ)
    except OSError as error:
        if error.errno == errno.ENXIO:  # what a socket says
            raise NotRegularError(f"{path} is a socket, not an ordinary file") from None
        raise
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return handle
    os.close(handle)
    raise NotRegularError(f"{path} is {_kind(mode)}, not an ordinary file")


def refuse_outside(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """See that a path, with all links followed, lies in a folder.

    Raises:
        NotRegularError: if it does not.
    """
    inside, real = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    if inside != real and inside not in real.parents:
        raise NotRegularError(f"{path} leads to {real}, out of {folder}; copy the file itself there (cp -L)")


def _kind(mode: int) -> str:
    return next((name for test, name in _KINDS if test(mode)), "something else")
