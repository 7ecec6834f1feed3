"""A short run of the fuzzer; recipes/evaluation/fuzz.py does the long one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_damaged_files_are_refused_and_nothing_is_run() -> None:
    command = [sys.executable, str(ROOT / "recipes" / "evaluation" / "fuzz.py"), "--count", "3000", "--seed", "5"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "bin: 3000 inputs" in done.stdout
    assert "pairs: 3000 inputs" in done.stdout
