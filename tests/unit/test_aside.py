"""What waits in a thread gives its value, its error and its context; a handler of signals is not held up."""

from __future__ import annotations

import contextvars
import os
import signal
import threading

import pytest

from lightning_pfc.distributed.aside import aside

PLACE = contextvars.ContextVar("PLACE", default="elsewhere")


def test_value_error_and_context() -> None:
    token = PLACE.set("here")
    assert aside(lambda: (PLACE.get(), threading.current_thread().name)) == ("here", "aside")
    PLACE.reset(token)
    with pytest.raises(TimeoutError, match="its own"):  # not one of the wait
        aside(lambda: (_ for _ in ()).throw(TimeoutError("its own")))


def test_another_thread_waits_by_itself() -> None:
    names: list[str] = []
    thread = threading.Thread(target=lambda: names.append(aside(lambda: threading.current_thread().name)), name="other")
    thread.start()
    thread.join(60.0)
    assert names == ["other"]


def test_a_handler_runs_while_the_call_waits_and_may_end_the_wait() -> None:
    free = threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: free.set())

    def call() -> str:
        os.kill(os.getpid(), signal.SIGUSR1)
        return "went on" if free.wait(60.0) else "held up"

    try:
        assert aside(call) == "went on"
        signal.signal(signal.SIGUSR1, signal.default_int_handler)
        free.clear()
        with pytest.raises(KeyboardInterrupt):
            aside(call)
    finally:
        signal.signal(signal.SIGUSR1, before)
        free.set()
