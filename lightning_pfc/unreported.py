"""Importing onnxruntime and OpenVINO so that they report to nobody.

Since 1.29 the wheels of onnxruntime for Linux and macOS keep a number of the device in the home folder and send events
to their maker, as those for Windows did before; OpenVINO's package keeps one too, and looks for a service of statistics
while it is imported. Neither belongs in a program that compares faces, and both make noise where a home folder or a
network is missing.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

_SWITCH = "ORT_DISABLE_TELEMETRY"
_REPORTER = "openvino_telemetry"


def import_unreported(name: str) -> Any:
    """Import a library by name; onnxruntime and OpenVINO with their reports off, which is decided by the first import.

    Those of onnxruntime are on where the environment says ``ORT_DISABLE_TELEMETRY=0``, those of OpenVINO where
    ``openvino_telemetry`` was imported before.

    Raises:
        ImportError: it is not installed.
    """
    switch, reporter = os.environ.get(_SWITCH), sys.modules.get(_REPORTER)
    os.environ[_SWITCH] = "1" if switch is None else switch
    sys.modules[_REPORTER] = reporter  # type: ignore[assignment]  # None: cannot be imported
    try:
        return importlib.import_module(name)
    finally:
        if switch is None:
            os.environ.pop(_SWITCH, None)
        if reporter is None:
            sys.modules.pop(_REPORTER, None)
