"""A gallery where nothing can be written: a full disk, a folder of somebody else, a medium that is read alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("faiss", reason="needs faiss-cpu, of the extra serve")

from lightning_pfc.commands.gallery import main
from lightning_pfc.gallery import Gallery, GalleryBusyError, GalleryError, ModelRecord, NewPicture, sqlite_opening
from lightning_pfc.gallery.sqlite_schema import DATABASE
from tests.file_limit import no_file_over

VECTORS = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    """Three identities; closed, so that no log lies beside the file."""
    folder = tmp_path / "a gallery, #1 %20?"
    with Gallery.create(folder, ModelRecord("a" * 64, 8, "export")) as made:
        made.extend((name, NewPicture(vector)) for name, vector in zip("abc", VECTORS, strict=True))
    return folder


@contextlib.contextmanager
def _full(gallery: Path) -> Iterator[None]:
    with no_file_over(1000):
        yield


@contextlib.contextmanager
def _no_new_file(gallery: Path) -> Iterator[None]:
    """For root too, whom no permission stops: SQLite follows no link in the place of the file that readers make."""
    place = gallery / f"{DATABASE}-shm"
    place.symlink_to("nowhere")
    yield
    place.unlink()


@contextlib.contextmanager
def _of_another(gallery: Path) -> Iterator[None]:
    """That file is there, and is read only, as where another user's service is at work."""
    place = gallery / f"{DATABASE}-shm"
    place.mkdir()
    yield
    place.rmdir()


@pytest.mark.parametrize("place", [_full, _no_new_file, _of_another])
def test_it_is_read(gallery: Path, place: object, capsys: pytest.CaptureFixture[str]) -> None:
    with place(gallery):  # type: ignore[operator]
        for words, said in ((["info"], "identities     3"), (["list"], "a\t1"), (["verify"], "0 faults")):
            assert main([words[0], str(gallery)]) == 0
            assert said in capsys.readouterr().out
        with Gallery.open(gallery, for_reading=True) as opened:
            assert opened.search(VECTORS[1], 1)[0].identity == "b"
            with pytest.raises(GalleryError, match="readonly"):
                opened.remove("a")


def test_it_is_copied(gallery: Path, tmp_path: Path) -> None:
    with _no_new_file(gallery):
        assert main(["export", str(gallery), str(tmp_path / "copy")]) == 0
    with Gallery.open(tmp_path / "copy") as copy:
        assert copy.store.count() == (3, 3)


def test_who_changes_it_is_told_why_not(gallery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with _no_new_file(gallery):
        assert main(["remove", str(gallery), "a"]) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "yours to write to" in said
    with Gallery.open(gallery) as opened:
        assert opened.store.count() == (3, 3)


def test_what_lies_in_the_log_alone_is_read_too_or_named(
    gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process that was killed leaves it; without the log it would be an older state, or none."""
    with Gallery.open(gallery) as opened:
        opened.enrol("late", [NewPicture(VECTORS[0])])
        killed = tmp_path / "killed"
        killed.mkdir()
        for name in (DATABASE, f"{DATABASE}-wal"):
            shutil.copy(gallery / name, killed / name)
    with _full(killed), Gallery.open(killed, for_reading=True) as opened:
        assert opened.store.identity("late").pictures == (4,)
    (killed / f"{DATABASE}-shm").unlink()

    def refuse(path: Path, words: str) -> sqlite3.Connection:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(sqlite_opening, "_by_address", refuse)  # as a medium that takes no lock
    with (
        _no_new_file(killed),
        pytest.raises(GalleryError, match=r"copy the folder to where it can, and use the copy\."),
    ):
        Gallery.open(killed, for_reading=True)


def test_a_change_under_a_reader_without_a_lock_is_noticed(gallery: Path) -> None:
    with _no_new_file(gallery):
        reader = Gallery.open(gallery, for_reading=True)
        assert reader.store.count() == (3, 3)
        os.utime(gallery / DATABASE, ns=(0, 0))  # as any writer leaves it
        with pytest.raises(GalleryBusyError, match="try again"):
            reader.store.count()
        reader.close()


def test_an_export_that_is_killed_is_not_in_the_way_of_the_next(gallery: Path, tmp_path: Path) -> None:
    """Else its folder holds other files, which nobody sees; what another host may be writing stays."""
    out, dead = tmp_path / "copy", os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(dead, 0)
    out.mkdir()
    parts = [out / name for name in _left_by(dead, tmp_path)]
    for part in parts:
        part.touch()
    assert main(["export", str(gallery), str(out)]) == 0
    assert os.listdir(out) == [DATABASE]
    other = tmp_path / "other"
    other.mkdir()
    (other / f".{DATABASE}~elsewhere.1~{dead}.part").touch()
    assert main(["export", str(gallery), str(other)]) == 1
    assert len(list(other.iterdir())) == 1


def _left_by(process: int, folder: Path) -> list[str]:
    from lightning_pfc.storage.makers import hidden_path

    name = hidden_path(folder / DATABASE).name.replace(f"~{os.getpid()}.", f"~{process}.")
    return [name, f"{name}-journal"]
