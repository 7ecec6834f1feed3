"""What ``torch.save`` takes for a file, where the reason why one cannot be written must not be lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class FirstError:
    """Takes bytes and never raises: the caller would go on with a file in an unknown state, and hide the reason.

    Args:
        sink: takes the bytes, from front to back.

    Attributes:
        error: the first that the sink has raised; nothing is written after it.
    """

    def __init__(self, sink: Callable[[Any], object]) -> None:
        self._sink = sink
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        """Take bytes."""
        view = memoryview(data).cast("B")
        count = len(view)
        if self.error is None:
            try:
                self._take(view)
            except BaseException as error:
                self.error = error
        return count

    def flush(self) -> None:
        """Nothing is kept back that could be written."""

    def finish(self) -> None:
        """All has been written.

        Raises:
            Exception: the first one that the sink raised.
        """
        if self.error is not None:
            raise self.error

    def _take(self, view: memoryview) -> None:
        self._sink(view)
