"""How the commands of this package end: with a status, and one line where something is wrong."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any


def run_command(name: str, work: Callable[[], int]) -> int:
    """Do the work of a command; what a user can mend is one line on stderr and status 1, without a traceback."""
    from lightning_pfc.checkpoint import CheckpointError

    before = _on_termination(_leave)  # so that what is half-written is taken away
    try:
        return work()
    except BrokenPipeError:
        raise  # the reader of the output has left
    except OSError as error:
        print(f"{name}: {_of_the_system(error)}", file=sys.stderr)
    except (ValueError, TypeError, ImportError, CheckpointError) as error:
        print(f"{name}: {one_line(str(error))}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        return 130
    finally:
        _on_termination(before)
    return 1


def _on_termination(handler: Any) -> Any:
    """Have a handler called at SIGTERM; returns the one before. Only the main thread may."""
    if handler is None or threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, handler)


def _leave(number: int, _: object) -> None:
    sys.exit(128 + number)


def _of_the_system(error: OSError) -> str:
    where = os.fspath(error.filename) if isinstance(error.filename, str | os.PathLike) else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{where + ': ' if where else ''}the disk is full; nothing was written. Free some space, or write elsewhere"
        )
    if error.strerror is None:
        return one_line(str(error))
    return f"{where}: {error.strerror}" if where else error.strerror


def one_line(text: str) -> str:
    """A message without line breaks."""
    return " ".join(text.split())
