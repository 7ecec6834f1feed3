"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path

import pytest

from lightning_pfc.checkpoint import CheckpointError
from lightning_pfc.checkpoint.publish import prepare_file, prepare_folder
from lightning_pfc.deploy.folder import publish
from lightning_pfc.storage.makers import hidden_path, this_host
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


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path / 'x'}'$"), write_whole(tmp_path / "x"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_half_made_is_swept(tmp_path: Path) -> None:
    """Once in a folder, and not what another host or this process may be making."""
    dead = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(dead, 0)
    mine = hidden_path(tmp_path / "x").name
    left = mine.replace(f"~{os.getpid()}.", f"~{dead}.")
    stays = {mine, f".x~elsewhere.1~{dead}.part", f".x~y.{dead}.part", f"x~{this_host()}~{dead}.part"}
    stays.add(f".x~{this_host().rpartition('.')[0]}.00000000~{dead}.part")  # of another host with the name of this one
    for name in (*stays, left, f"{left}-journal"):
        (tmp_path / name).touch()
    (tmp_path / left.replace(".x~", ".folder~")).mkdir()
    with write_whole(tmp_path / "other"):
        pass
    assert set(os.listdir(tmp_path)) == {*stays, "other"}


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "\U0001f600" * 63):
        with write_whole(tmp_path / name) as file:
            file.write(b"here")
        assert (tmp_path / name).read_bytes() == b"here"


def test_a_device_or_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    """Who is root in a container would have lost ``/dev/null`` by ``--list /dev/null``."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        try:
            with write_whole(path, "w") as file:
                file.write("here")
            assert os.read(reader, 100) == b"here"
        finally:
            os.close(reader)
        assert stat.S_ISFIFO(path.stat().st_mode)
    for made in (prepare_file, prepare_folder):
        with pytest.raises(CheckpointError, match="is a device or a pipe; give the name of a file"):
            made(link)
    assert sorted(tmp_path.iterdir()) == [link, pipe]


def test_json_has_null_where_there_is_no_number(tmp_path: Path) -> None:
    path = write_json(tmp_path / "x.json", {"a": math.nan, "b": [math.inf, 1.5], "c": {"d": -math.inf, "e": "NaN"}})
    assert json.loads(path.read_text()) == {"a": None, "b": [None, 1.5], "c": {"d": None, "e": "NaN"}}
