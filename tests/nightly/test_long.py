"""Long series of what the other tiers try a few times: damaged files, killed ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "recipes" / "benchmarks"
FUZZED, KILLS = int(os.environ.get("PFC_NIGHTLY_FUZZED", "20000")), int(os.environ.get("PFC_NIGHTLY_KILLS", "200"))


def run(*words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.timeout(0)
def test_damaged_data_sets() -> None:
    run(str(BENCHMARKS / "fuzz" / "fuzz.py"), "--together", "--count", str(FUZZED))


@pytest.mark.timeout(0)
def test_damaged_checkpoints() -> None:
    run(str(BENCHMARKS / "checkpoint_fuzz" / "fuzz.py"), "--count", str(FUZZED))


@pytest.mark.timeout(0)
@pytest.mark.parametrize("options", [[], ["--asynchronous"]], ids=["", "asynchronous"])
def test_killed_ranks(options: list[str]) -> None:
    said = run(str(BENCHMARKS / "kill_test" / "kill_test.py"), "--kills", str(KILLS), *options)
    assert "checkpoints lost   0" in said
    assert "resumes that differ 0" in said
