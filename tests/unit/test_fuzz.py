"""A thousand damaged files for each reader; recipes/benchmarks/fuzz/fuzz.py feeds as many as are asked for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COUNT = 1000


def test_damaged_files_are_read_or_refused_and_nothing_else() -> None:
    pytest.importorskip("pyarrow")
    command = [
        sys.executable,
        str(ROOT / "recipes" / "benchmarks" / "fuzz" / "fuzz.py"),
        "--together",
        "--count",
        str(COUNT),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    found = re.findall(rf"^(\w+) +{COUNT} inputs: (\d+) read, (\d+) refused, 0 wrong", done.stdout, re.MULTILINE)
    assert len(found) >= 14
    for reader, read, refused in found:
        assert int(read) + int(refused) == COUNT
        assert min(int(read), int(refused)) > COUNT / 50, reader  # the damage is neither harmless nor total
