"""What libraries log, as lines of the service's own log: whoever reads it finds one JSON object in each."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from typing_extensions import override

from lightning_pfc.service.telemetry import Telemetry


class _Lines(logging.Handler):
    def __init__(self, telemetry: Telemetry) -> None:
        super().__init__(logging.WARNING)
        self._telemetry = telemetry

    @override
    def emit(self, record: logging.LogRecord) -> None:
        """Of a traceback only the kind of its error: the rest may hold what a request held."""
        kind = record.exc_info[0] if record.exc_info else None
        text = " ".join(record.getMessage().split()) if kind is None else ""
        error = {} if kind is None else {"error": kind.__name__}
        self._telemetry.event(record.levelname.lower(), source=record.name, **({"text": text} if text else {}), **error)


@contextlib.contextmanager
def whole_log(telemetry: Telemetry) -> Iterator[None]:
    """In the block, warnings and errors of all libraries of this process go to the log of ``telemetry``."""
    handler, root = _Lines(telemetry), logging.getLogger()
    others = root.handlers[:]
    root.handlers[:] = [handler]
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = others
