"""Who makes a file or folder that has not got its name yet, so that what dead processes have left is known."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path

_DAY = 86_400.0


def this_host() -> str:
    """Where the processes are that this one may ask after.

    The host, and on Linux the space of its process numbers: containers may have the name of their host, or of each
    other, and each its own process 17.
    """
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()}.{os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()


def is_left_behind(path: Path, host: str, pid: int) -> bool:
    """Whether nobody goes on making ``path``: its process has ended; of another host, a day has passed."""
    if pid == os.getpid() and host == this_host():
        return False
    if host == this_host() and os.name == "posix":  # on Windows there is no asking after a process without ending it
        return not _runs(pid)
    return _idle(path) > _DAY


def _idle(path: Path) -> float:
    """Seconds since anything in a folder was written."""
    latest = 0.0
    with contextlib.suppress(OSError):
        latest = path.lstat().st_mtime
        for inside in path.iterdir() if path.is_dir() and not path.is_symlink() else ():
            latest = max(latest, inside.lstat().st_mtime)
    return time.time() - latest if latest else 0.0


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
