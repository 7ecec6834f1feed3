"""Tests in a process of their own: what ends it, or hangs in it, costs one test and not those after it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from acceptance.verdict import SHORT, Check, Line

AGAIN = 3
"""Exit code of a process that cannot go on after a test: an error stays on its GPU until it ends."""
_GRACE = 2.0  # seconds that a process may be late


def deadlines(checks: Sequence[Check], seconds: float) -> dict[int, float]:
    """Seconds from now by which each test must have ended, so that all together keep their time; by number.

    What a test leaves of its share is there for those after it.
    """
    total, gone, found = sum(check.seconds for check in checks), 0.0, {}
    for check in checks:
        gone += check.seconds
        found[check.number] = seconds * gone / total
    return found


class Teller:
    """What the process of the tests writes: a line of JSON for whatever is known. The other end is :func:`run_apart`.

    Args:
        out: the process's own standard output, which libraries write to as well.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def figures(self, check: Check, figures: Mapping[str, float]) -> None:
        """What a test has found so far."""
        self._write({"test": check.number, "so_far": dict(figures)})

    def line(self, line: Line) -> None:
        """What came of a test."""
        self._write(line.record())

    def _write(self, record: dict[str, Any]) -> None:
        self._out.write(json.dumps(record) + "\n")
        self._out.flush()


def run_apart(
    checks: Sequence[Check], command: Callable[[Sequence[Check], float], list[str]], seconds: float
) -> Iterator[Line]:
    """A line for each test, in order, from processes that run them; a new one where the last one ended before its end.

    Args:
        checks: the tests.
        command: a process that runs some tests in so many seconds, and tells of them by a :class:`Teller`.
        seconds: for all.
    """
    start, waiting = time.monotonic(), list(checks)
    limits = deadlines(checks, seconds)
    while waiting:
        left = start + seconds - time.monotonic()
        if left <= 0:
            yield from (Line(check, notes=["the time for all tests is over"]) for check in waiting)
            return
        with _Process(command(waiting, left)) as process:
            while waiting:
                check = waiting[0]
                line = process.next_line(check, start + limits[check.number] + _GRACE)
                if line is None:
                    break
                waiting.pop(0)
                yield line
                if process.stopped:
                    break


class _Process:
    """One process of tests, and what it says."""

    def __init__(self, command: list[str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._errors, text=True, start_new_session=True
        )
        self._said: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.stopped, self._lines = False, 0
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._errors.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            try:
                record = json.loads(text)
            except ValueError:  # a library's
                continue
            if isinstance(record, dict) and "test" in record:
                self._said.put(record)
        self._said.put(None)

    def next_line(self, check: Check, end: float) -> Line | None:
        """What came of a test, by ``end`` on the monotonic clock; None where the process ended by itself before it."""
        figures: dict[str, float] = {}
        began = time.monotonic()
        while True:
            try:
                record = self._said.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                self._stop()
                return self._short(check, figures, began, "it took longer than its share of the time, and was stopped")
            if record is None:
                return self._ended(check, figures, began)
            if record["test"] == check.number and "so_far" in record:
                figures = record["so_far"]
            elif record["test"] == check.number:
                self._lines += 1
                return Line.of_record(check, record)

    def _ended(self, check: Check, figures: dict[str, float], began: float) -> Line | None:
        code = self._process.wait()
        self.stopped = True
        if code == AGAIN and self._lines:
            return None
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with {code}"
        return self._short(check, figures, began, f"its process ended {how}{self._last_error()}")

    def _short(self, check: Check, figures: dict[str, float], began: float, why: str) -> Line:
        return Line(check, figures, [why], time.monotonic() - began, SHORT)

    def _last_error(self) -> str:
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(words) if line.strip()), "")
        return f": {last}" if last else ""

    def _stop(self) -> None:
        """End the process, and what it started."""
        self.stopped = True
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
