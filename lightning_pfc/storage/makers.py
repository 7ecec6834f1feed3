"""Who makes a file or folder that has not got its name yet, so that what dead processes have left is known.

The checkpoints have names of their own for that, which nobody who looks for checkpoints takes for one.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

_DAY = 86_400.0
_LONGEST = 100  # bytes of a name that is kept as it is: with host and process it must stay below 255
_HIDDEN = re.compile(r"\.(.+)~(.+)~(\d+)(\.\w+)(?:-journal)?", re.DOTALL)


def hidden_path(final: Path, suffix: str = ".part") -> Path:
    """Where this process makes ``final`` until it is whole: beside it, with host and process in the name."""
    return final.with_name(f".{_short(final.name)}~{this_host()}~{os.getpid()}{suffix}")


def left_behind(folder: Path, suffix: str = ".part", *, of: Path | None = None) -> Iterator[Path]:
    """What lies in a folder under a name of :func:`hidden_path`, and nobody goes on making.

    Args:
        folder: to be looked through; one that cannot be read has nothing.
        suffix: of the hidden names.
        of: only what was to become this one; what this process itself has left counts too then.
    """
    try:
        with os.scandir(folder) as entries:
            found = [_HIDDEN.fullmatch(entry.name) for entry in entries]
    except OSError:
        return
    for match in found:
        if match is None or match[4] != suffix or (of is not None and match[1] != _short(of.name)):
            continue
        path, maker = folder / match[0], (match[2], int(match[3]))
        if is_left_behind(path, *maker) or (of is not None and maker == (this_host(), os.getpid())):
            yield path


def sweep_parts(folder: Path) -> None:
    """Delete what processes that ended have left half-made in a folder, as far as that is allowed."""
    for path in left_behind(folder):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


@functools.cache
def sweep_parts_once(folder: Path) -> None:
    """The same, once in the life of a process, for who writes many files into one folder."""
    sweep_parts(folder)


def _short(name: str) -> str:
    whole = os.fsencode(name)
    return name if len(whole) <= _LONGEST else f"{name[:20]}-{hashlib.sha256(whole).hexdigest()[:16]}"


def this_host() -> str:
    """Where the processes are that this one may ask after.

    The host, and on Linux what is running there: two hosts may have one name (``localhost``, copies of one machine).
    And the space of its process numbers: containers may have the name of their host, or of each other, and each its
    own process 17.
    """
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        name = f"{name}.{os.stat('/proc/self/ns/pid').st_ino}"
        name = f"{name}.{this_kernel()[:8]}"
    return name


def this_kernel() -> str:
    """Where one system keeps the locks of all processes: on Linux a number drawn at each boot, elsewhere the host."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return socket.gethostname()


def is_left_behind(path: Path, host: str, pid: int) -> bool:
    """Whether nobody goes on making ``path``: its process has ended; of another host, a day has passed."""
    if pid == os.getpid() and host == this_host():
        return False
    if host == this_host() and os.name == "posix":  # on Windows there is no asking after a process without ending it
        return not is_running(pid)
    return _idle(path) > _DAY


def _idle(path: Path) -> float:
    """Seconds since anything in a folder was written."""
    latest = 0.0
    with contextlib.suppress(OSError):
        latest = path.lstat().st_mtime
        for inside in path.iterdir() if path.is_dir() and not path.is_symlink() else ():
            latest = max(latest, inside.lstat().st_mtime)
    return time.time() - latest if latest else 0.0


def is_running(pid: int) -> bool:
    """Whether this host has such a process; not to be asked on Windows, where asking ends it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
