"""The command that kills ranks, for a few kills; the figure for hundreds is in the docs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(__file__).parents[2] / "recipes" / "benchmarks" / "kill_test" / "kill_test.py"


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--asynchronous"]], ids=["", "asynchronous"])
def test_nothing_is_lost(options: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(COMMAND), "--kills", "2", "--kills-per-run", "2", "--steps", "60", *options]
    done = subprocess.run([*command, "--keep", str(tmp_path)], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checkpoints lost   0" in done.stdout
    assert "resumes that differ 0" in done.stdout
