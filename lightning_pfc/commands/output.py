"""What a command prints, and who reads it."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def may_be_cut_short(command: Callable[P, R]) -> Callable[P, R]:
    """Let the reader of a command leave before its end, as ``pfc-train --help | head`` does, without a word about it.

    The exit status stays that of the command; where the command itself could not go on, it is that of SIGPIPE.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except BrokenPipeError:
            sys.exit(141)
        finally:
            _finish()

    return wrapped


def _finish() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to complain at exit
