"""The command that kills ranks, for a few kills; the figure for hundreds is in the docs."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import pytest

from tests.ranks import RankPool

COMMAND = Path(__file__).parents[2] / "recipes" / "benchmarks" / "kill_test" / "kill_test.py"


def nothing(rank: int, world_size: int) -> None:
    """Has the server started from which the ranks of the pool are forked."""


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--asynchronous"]], ids=["", "asynchronous"])
def test_nothing_is_lost(
    options: list[str],
    tmp_path: Path,
    ranks: RankPool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process: the ranks are killed, and not the command, and are forked from the server of the pool."""
    ranks.run(1, nothing)
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PYTHONPATH"):  # the command sets them
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.syspath_prepend(str(COMMAND.parent))
    words = ["--kills", "2", "--kills-per-run", "2", "--steps", "60", *options, "--keep", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [str(COMMAND), *words])
    code = runpy.run_path(str(COMMAND), run_name="kill_test")["main"]()
    said = capsys.readouterr()
    assert code == 0, said
    assert "checkpoints lost   0" in said.out
    assert "resumes that differ 0" in said.out
