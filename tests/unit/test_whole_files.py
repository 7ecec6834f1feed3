"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lightning_pfc.deploy.folder import publish
from lightning_pfc.storage.whole_files import write_json, write_whole


def test_a_file_that_fails_half_way_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "made" / "x.txt"
    with write_whole(path, "w") as file:
        file.write("old")
        assert not path.exists()
    with pytest.raises(RuntimeError, match="disk full"):
        _fail_half_way(path)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def _fail_half_way(path: Path) -> None:
    with write_whole(path, "w") as file:
        file.write("half")
        file.flush()
        raise RuntimeError("disk full")


def test_an_error_names_what_was_asked_for(tmp_path: Path) -> None:
    """Not the hidden name under which it is made: a folder that takes no names, one that is in the way."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").touch()
    for path in (Path("/proc/x"), tmp_path / "taken"):
        with pytest.raises(OSError, match=f"^[^.]*'{path}'$|'{path}' -> '{path}'$"), write_whole(path):
            pass
    for inside in ("", "a/b"):
        with pytest.raises(OSError, match=f"'{tmp_path / 'out' / inside}'$"), publish(tmp_path / "out") as folder:
            (folder / inside).mkdir()
    with pytest.raises(OSError, match=r"'/proc/x'$"), publish("/proc/x"):
        pass


def test_json_has_null_where_there_is_no_number(tmp_path: Path) -> None:
    path = write_json(tmp_path / "x.json", {"a": math.nan, "b": [math.inf, 1.5], "c": {"d": -math.inf, "e": "NaN"}})
    assert json.loads(path.read_text()) == {"a": None, "b": [None, 1.5], "c": {"d": None, "e": "NaN"}}
