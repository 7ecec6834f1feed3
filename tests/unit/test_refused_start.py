"""What a start that is refused leaves behind: nothing, but what was there before."""

from __future__ import annotations

import contextlib
import errno
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_pfc import train
from lightning_pfc.commands.refused_start import no_folder_of_a_refused_start
from lightning_pfc.evaluation import ijb
from lightning_pfc.runs import lock
from lightning_pfc.runs.lock import LOCK, Lock
from lightning_pfc.storage import file_lock
from tests import console

_WORDS = ("experiment=none", "trainer.accelerator=cpu", "plots=false", "logger=none")


def start(folder: Path, error: Exception) -> None:
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    (folder / ".hydra" / "config.yaml").touch()

    @no_folder_of_a_refused_start(folder)
    def begin() -> None:
        (folder / "run.json").touch()
        raise error

    with pytest.raises(type(error)):
        begin()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("loss.margin=-5", "margin must lie in"),
        ("trainer.max_epochs=foo", r"trainer.max_epochs='foo': max_epochs must be a whole number or None"),
        ("trainer.gradient_clip_val=[1]", "trainer.gradient_clip_val=.* must be"),
    ],
)
def test_nothing_is_left_of_a_refused_start(tmp_path: Path, word: str, said: str) -> None:
    with pytest.raises(Exception, match=said):
        train(*_WORDS, word, f"output_dir={tmp_path}/run")
    assert not any(tmp_path.iterdir())


def test_what_else_is_in_a_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(tmp_path / "run", ValueError("no such margin"))
    assert not (tmp_path / "run").exists()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "notes.txt").touch()
    start(tmp_path / "kept", ValueError("no such margin"))
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"notes.txt", ".hydra", "run.json"}
    start(tmp_path / "trained", FloatingPointError("the backbone has diverged"))
    start(tmp_path / "fault", RuntimeError("of our own, with a traceback"))
    monkeypatch.setenv("RANK", "1")
    start(tmp_path / "other", ValueError("refused on every rank"))
    for name in ("trained", "fault", "other"):
        assert (tmp_path / name / "run.json").exists()
    monkeypatch.delenv("RANK")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    start(tmp_path / "here", ValueError("no such margin"))
    assert not any((tmp_path / "here").iterdir())


@contextlib.contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Another process tries to take the lock of a folder; whether it has it."""
    program = "import sys; from pathlib import Path; from lightning_pfc.runs.lock import Lock\n"
    program += "Lock(Path(sys.argv[1])).take(None); print('taken', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        yield other.stdout.readline().strip() == "taken"
        other.kill()


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "identities", "overrides.yaml"])
def test_what_bears_the_name_of_a_run_file_stays(tmp_path: Path, name: str) -> None:
    """A config of the user's own; the record of an earlier run that was killed before its first checkpoint."""
    (tmp_path / name).write_text("mine")
    start(tmp_path, ValueError("no such margin"))
    assert (tmp_path / name).read_text() == "mine"


def test_a_folder_in_which_another_run_has_begun_stays(tmp_path: Path) -> None:
    @no_folder_of_a_refused_start(tmp_path / "run")
    def begin() -> None:
        assert others.enter_context(held(tmp_path / "run"))
        (tmp_path / "run" / "config.yaml").touch()
        raise ValueError("refused")

    with contextlib.ExitStack() as others:
        with pytest.raises(ValueError, match="refused"):
            begin()
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [LOCK, "config.yaml"]


@pytest.mark.parametrize(("why", "stays"), [(errno.ENOSPC, False), (errno.EDQUOT, False), (errno.EACCES, True)])
def test_a_full_disk_has_no_room_for_a_lock_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: int, stays: bool
) -> None:
    def refused(*_: object) -> None:
        raise OSError(why, "no")

    monkeypatch.setattr(Lock, "take", refused)
    start(tmp_path / "run", OSError(errno.ENOSPC, "No space left on device"))
    assert (tmp_path / "run").exists() == stays


def test_a_lock_that_was_taken_away_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened, then removed with its folder by who had it: whoever gets it makes a new one."""
    ask = file_lock.ask_for_lock
    removed: list[Path] = []

    def remove_first(file: int) -> bool | None:
        if not removed:
            removed.append(tmp_path / "run")
            shutil.rmtree(tmp_path / "run")
        return ask(file)

    monkeypatch.setattr(lock, "ask_for_lock", remove_first)
    own = Lock(tmp_path / "run")
    own.take(None)
    assert removed
    with held(tmp_path / "run") as had:
        assert not had
    own.give_back()
    with held(tmp_path / "run") as had:
        assert had


def test_a_template_has_one_subject(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    table = tmp_path / "meta" / "gallery.csv"
    table.write_text("TEMPLATE_ID,SUBJECT_ID\n1,7\n1,7\n2,8\n")
    assert [part.tolist() for part in ijb._subjects(table)] == [[1, 2], [7, 8]]
    table.write_text("TEMPLATE_ID,SUBJECT_ID\n1,7\n2,8\n1,9\n")
    with pytest.raises(ValueError, match="template 1 is of the subjects 7 and 9"):
        ijb._subjects(table)


@pytest.mark.parametrize("name", ["a${seed}", "a${q}", "a${q"])
def test_a_folder_that_is_called_like_another_key_is_no_place_to_start(tmp_path: Path, name: str) -> None:
    """A run in ``a${seed}`` went to ``a0``, beside it, without a word."""
    (tmp_path / name).mkdir()
    done = console.run("lightning_pfc.commands.train", *_WORDS, "trainer.max_epochs=0", cwd=tmp_path / name)
    assert done.returncode == 1
    assert f"pfc-train: the folder you are in, {tmp_path}/{name}, has ${{ in its name" in done.stderr
    assert [path.name for path in tmp_path.rglob("*")] == [name]
