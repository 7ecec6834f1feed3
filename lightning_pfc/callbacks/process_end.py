"""Ending a process from within a callback: at once, or when something has taken too long."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from typing import NoReturn

import lightning as L


def end_process(trainer: L.Trainer, status: int) -> NoReturn:
    """End with a status, after what an orderly exit would have done."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, "say_goodbye"):
            callback.say_goodbye()
    for logger in trainer.loggers:
        with contextlib.suppress(Exception):
            logger.finalize("aborted")
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


def end_after(seconds: float, text: str) -> threading.Timer:
    """Have this process end with status 1 and a last line, unless the timer is cancelled in time."""
    timer = threading.Timer(seconds, _give_up, (text,))
    timer.daemon = True
    timer.start()
    return timer


def _give_up(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
    os._exit(1)
