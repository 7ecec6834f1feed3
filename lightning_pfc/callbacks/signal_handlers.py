"""Handlers of signals for as long as a Trainer runs, in place of those of Lightning."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import lightning as L
from lightning_utilities.core.rank_zero import rank_zero_warn


class SignalHandlers:
    """One handler for several signals, which gives them back as they were.

    Args:
        signals: to take over.
        received: called with the number of a signal, within the handler.
    """

    def __init__(self, signals: Sequence[signal.Signals], received: Callable[[int], None]) -> None:
        self._signals, self._received = signals, received
        self._before: dict[int, Any] = {}
        self._connector: Any = None

    def replace_those_of(self, trainer: L.Trainer) -> None:
        """Have a Trainer install these where it would install its own: no instant in which Lightning's are in force."""
        connector = getattr(trainer, "_signal_connector", None)
        if connector is not None and hasattr(connector, "register_signal_handlers"):
            connector.register_signal_handlers = self.install
            self._connector = connector

    def install(self) -> None:
        """Take the signals over, also from whoever took them since; in the main thread, which alone may."""
        if threading.current_thread() is not threading.main_thread():
            rank_zero_warn("Preemption: signals can only be handled in the main thread; this run ignores them.")
            return
        for each in self._signals:
            before = signal.getsignal(each)
            if before != self._handle:
                self._before.setdefault(each, before)
                signal.signal(each, self._handle)

    def ignore(self) -> None:
        """Let nothing more disturb this process."""
        for each in self._signals:
            signal.signal(each, signal.SIG_IGN)

    def restore(self) -> None:
        """Give the signals back."""
        if self._connector is not None:
            vars(self._connector).pop("register_signal_handlers", None)
        self._connector = None
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
            self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._received(number)
