"""Imports that take seconds, without the garbage collector: they make a million objects, and all of them stay."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def large_imports() -> Iterator[None]:
    """Around the first large import of a command; a process that has imported Lightning is left as it is.

    The collector would go over what is imported again and again, a third of the processor time of a start. Nothing
    is collected meanwhile; afterwards it looks at new objects only, until the process ends.
    """
    if "lightning.pytorch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
