"""Runs the tests of ``tests/interpreted`` in a process whose Triton interprets kernels on the CPU."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "interpreted"


@pytest.mark.timeout(600)
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_equal_their_twins():
    """All files in one process: a start takes as long as most of them."""
    command = [sys.executable, "-m", "pytest", "-v", "-n", "0", "-p", "no:cacheprovider", str(FOLDER)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(FOLDER.parents[1])}
    done = subprocess.run(command, env=environment, cwd=FOLDER.parents[1], capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    for file in FOLDER.glob("test_*.py"):
        counted = len(re.findall(rf"{file.name}::\S.* PASSED", done.stdout))
        assert counted >= 10, f"hardly anything of {file.name} was collected"
    assert "SKIPPED" not in done.stdout
