"""Waiting for other ranks in a thread, so that signals are handled meanwhile."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import torch

_T = TypeVar("_T")
_SLICE = 1.0  # seconds; on Windows Ctrl-C is seen at the end of one only


def aside(call: Callable[[], _T]) -> _T:
    """Do in a thread what may wait for other processes in C code; this thread waits for it.

    Python runs handlers of signals in the main thread, between two of its instructions. A main thread that waits in a
    store's or a group's C code has none for as long as the time-out: neither SIGTERM nor Ctrl-C would end it.

    Args:
        call: what waits. The current CUDA device and the context variables are those of the caller.

    Returns:
        What ``call`` returns; what it raises is raised. A handler that raises leaves it behind in a daemon thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()  # signals are none of its business
    done: Future[_T] = Future()
    context, over = contextvars.copy_context(), threading.Event()
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]

    def work() -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)
            done.set_result(context.run(call))
        except BaseException as error:
            done.set_exception(error)
        finally:
            over.set()

    threading.Thread(target=work, name="aside", daemon=True).start()
    while not over.wait(_SLICE):
        pass
    return done.result()
