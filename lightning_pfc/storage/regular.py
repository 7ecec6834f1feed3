"""Opening files that somebody else may have prepared: ordinary ones only, below a folder where one is given.

Whoever makes a data set or a checkpoint chooses the names in it. A name may be a FIFO, which waits for ever, a device
that never ends, or a link to a file of somebody else's. None of these is opened here.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO, which would be waited for"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)
_FLAGS = os.O_RDONLY
for _name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"):
    _FLAGS |= getattr(os, _name, 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


class NotRegularError(OSError):
    """A path is not an ordinary file, or leads out of the folder that it has to lie in."""


def check_regular(path: str | os.PathLike[str]) -> os.stat_result:
    """Sees that an ordinary file lies at a path, without opening it: for libraries that open it themselves.

    Raises:
        FileNotFoundError: nothing lies there.
        NotRegularError: for a folder, a FIFO, a device or a socket.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {os.fspath(path)}") from None
    except ValueError as error:  # a zero byte in the name
        raise NotRegularError(f"{os.fspath(path)!r} is no name of a file: {error}") from None
    _refuse_others(path, found.st_mode)
    return found


def open_regular(
    path: str | os.PathLike[str], below: str | os.PathLike[str] | None = None, *, follow: bool = True
) -> int:
    """A file descriptor for reading an ordinary file; never waits for the other end of anything.

    Args:
        path: the file.
        below: a folder; links that lead out of it are refused. None lets links lead anywhere.
        follow: whether ``path`` itself may be a link.

    Raises:
        FileNotFoundError: nothing lies there.
        NotRegularError: for a folder, a FIFO, a device or a socket, or a link out of ``below``.
        OSError: if it cannot be opened.
    """
    if below is not None:
        refuse_outside(path, below)
    check_regular(path)  # before it is opened: opening some devices does something
    handle = os.open(path, _FLAGS if follow else _FLAGS | _NO_LINK)
    try:
        _refuse_others(path, os.fstat(handle).st_mode)  # whatever was put there in the meantime
    except BaseException:
        os.close(handle)
        raise
    return handle


def open_file(path: str | os.PathLike[str], *, follow: bool = True) -> BinaryIO:
    """As :func:`open_regular`, as a file object."""
    check_regular(path)
    return open(path, "rb", opener=lambda name, flags: open_regular(name, follow=follow))


def read_regular(path: str | os.PathLike[str], max_bytes: int, *, follow: bool = True) -> bytes:
    """The bytes of an ordinary file of at most ``max_bytes``.

    Raises:
        NotRegularError: it is none, or larger; and as :func:`open_regular`.
    """
    with open_file(path, follow=follow) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise NotRegularError(f"{os.fspath(path)} has {size} bytes, more than {max_bytes}")
        data = file.read(size + 1)  # room is made for as many as are asked for
        if len(data) > size:  # it grows, or is one of the kernel's, which say nothing of their size
            raise NotRegularError(f"{os.fspath(path)} has more than the {size} bytes that it says")
        return data


def refuse_outside(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """See that a path, with all links followed, lies in a folder.

    Raises:
        NotRegularError: if it does not.
    """
    inside, real = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    if inside != real and inside not in real.parents:
        raise NotRegularError(f"{path} leads to {real}, out of {folder}; copy the file itself there (cp -L)")


def check_replaceable(path: str | os.PathLike[str]) -> None:
    """See that what a new file or folder takes the place of is one: whoever may write to /dev must keep ``/dev/null``.

    Raises:
        NotRegularError: for a FIFO, a device or a socket, also behind a link.
    """
    if not is_replaceable(path):
        raise NotRegularError(f"{os.fspath(path)} is a device or a pipe; give the name of a file")


def is_replaceable(path: str | os.PathLike[str]) -> bool:
    """Whether nothing lies at a path, or a file or a folder."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return True
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def _refuse_others(path: str | os.PathLike[str], mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "something else")
        raise NotRegularError(f"{os.fspath(path)} is {kind}, not an ordinary file")
