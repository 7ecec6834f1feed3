"""Locks of the system on an open file: they end with the process that has them."""

from __future__ import annotations

import errno

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def ask_for_lock(file: int) -> bool | None:
    """Whether the system gives this process an open file for itself; never waits.

    Args:
        file: descriptor, open for writing.

    Returns:
        False where another process has it, None where there are no locks (Windows, some file systems of clusters). The
        lock ends with the process, and when the process closes any descriptor of that file.
    """
    if fcntl is not None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
    return None
