"""How the commands of this package end: with a status, and one line where something is wrong."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning_pfc.commands.imports import large_imports
from lightning_pfc.commands.system_errors import of_the_system


def run_command(name: str, work: Callable[[], int], wrong_input: int = 1) -> int:
    """Do the work of a command; what a user can mend is one line on stderr, without a traceback.

    Returns:
        What ``work`` returns; 1 for a damaged checkpoint, ``wrong_input`` for all else that a user can mend, 130 after
        Ctrl-C.
    """
    with large_imports():
        from lightning_pfc.checkpoint import CheckpointError

    before = _on_termination(_leave)  # so that what is half-written is taken away
    try:
        return work()
    except BrokenPipeError:
        raise  # the reader of the output has left
    except CheckpointError as error:
        print(f"{name}: {one_line(str(error))}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{name}: {one_line(of_the_system(error))}", file=sys.stderr)
    except (ValueError, TypeError, ImportError, MemoryError) as error:
        print(f"{name}: {one_line(str(error)) or type(error).__name__}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        return 130
    finally:
        _on_termination(before)
    return wrong_input


@contextmanager
def unexpected_in_one_line() -> Iterator[None]:
    """Around work on strangers' files: an error that nobody foresaw is one line as well, and says where to see more."""
    try:
        yield
    except (OSError, ValueError, TypeError, ImportError, MemoryError):
        raise
    except Exception as error:
        if os.environ.get("PFC_TRACEBACK"):
            raise
        raise ValueError(f"{type(error).__name__}: {error} (PFC_TRACEBACK=1 shows where)") from error


def _on_termination(handler: Any) -> Any:
    """Have a handler called at SIGTERM; returns the one before. Only the main thread may."""
    if handler is None or threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, handler)


def _leave(number: int, _: object) -> None:
    sys.exit(128 + number)


def one_line(text: str) -> str:
    """A message without line breaks, and without what a terminal would take for orders."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
