"""What the system refused, with the way out: a full disk, a folder that is read-only, a file in a folder's place."""

from __future__ import annotations

import errno
import os

_FULL = (
    "the disk is full; nothing half-made stands under its name. Free some space and give the same command again, or "
    "write elsewhere"
)
_OTHER_MODE = "mend its mode or its owner, or name another"
_WAYS_OUT = {
    errno.EROFS: "name a place that can be written",
    errno.EACCES: _OTHER_MODE,
    errno.EPERM: _OTHER_MODE,
    errno.ENOTDIR: "a part of that path is a file; name another",
    errno.EISDIR: "name a file",
    errno.EEXIST: "name another, or take away what is there",
    errno.ENOENT: "see whether the name is right",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "end programs that hold files open",
    errno.EFBIG: "allow larger files (ulimit -f), or write to another file system",
    errno.EIO: "see whether the disk is sound",
}


def of_the_system(error: OSError) -> str:
    """One sentence: the path, what the system said of it, and what to do; of an error without a number its own text."""
    where = os.fspath(error.filename) if isinstance(error.filename, str | os.PathLike) else ""
    place = f"{where}: " if where else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return place + _FULL
    if error.strerror is None:
        return str(error)
    way_out = _WAYS_OUT.get(error.errno or 0)
    return place + error.strerror + (f"; {way_out}" if way_out else "")
