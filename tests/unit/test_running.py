"""How a command ends: the status and the one line for each kind of error."""

from __future__ import annotations

import errno
import os
import signal
import zipfile

import pytest

from lightning_pfc.checkpoint import CheckpointError
from lightning_pfc.commands import ckpt, data
from lightning_pfc.commands.running import run_command, unexpected_in_one_line


def _refused(number: int) -> OSError:
    return OSError(number, os.strerror(number), "a")


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out.npz")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("k is 0,\n  but must be positive"), 2, "pfc-x: k is 0, but must be positive"),
        (TypeError("k is no number"), 2, "pfc-x: k is no number"),
        (ImportError("no faiss"), 2, "pfc-x: no faiss"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.ckpt"), 2, "pfc-x: a.ckpt: No such file"),
        (FULL, 2, "pfc-x: out.npz: the disk is full; nothing half-made stands under its name."),
        (_refused(errno.EROFS), 2, "pfc-x: a: Read-only file system; name a place that can be written"),
        (_refused(errno.EACCES), 2, "pfc-x: a: Permission denied; mend its mode or its owner, or name another"),
        (_refused(errno.ENOTDIR), 2, "pfc-x: a: Not a directory; a part of that path is a file; name another"),
        (_refused(errno.EISDIR), 2, "pfc-x: a: Is a directory; name a file"),
        (_refused(errno.EEXIST), 2, "pfc-x: a: File exists; name another, or take away what is there"),
        (_refused(errno.EFBIG), 2, "pfc-x: a: File too large; allow larger files (ulimit -f)"),
        (MemoryError(), 2, "pfc-x: MemoryError"),
        (CheckpointError("a.ckpt is damaged"), 1, "pfc-x: a.ckpt is damaged"),
        (KeyboardInterrupt(), 130, "pfc-x: interrupted"),
    ],
)
def test_one_line_and_a_status(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> int:
        raise error

    before = signal.getsignal(signal.SIGTERM)
    assert run_command("pfc-x", work, wrong_input=2) == status
    said = capsys.readouterr().err.strip()
    assert said.startswith(line)
    assert "\n" not in said
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("error", [BrokenPipeError(), ZeroDivisionError()])
def test_what_no_user_can_mend_goes_on(error: Exception) -> None:
    def work() -> int:
        raise error

    with pytest.raises(type(error)):
        run_command("pfc-x", work)


def test_an_error_that_nobody_foresaw_is_one_line_and_says_how_to_see_more(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"BadZipFile: cut \(PFC_TRACEBACK=1 shows where\)"), unexpected_in_one_line():
        raise zipfile.BadZipFile("cut")
    monkeypatch.setenv("PFC_TRACEBACK", "1")
    with pytest.raises(zipfile.BadZipFile), unexpected_in_one_line():
        raise zipfile.BadZipFile("cut")


@pytest.mark.parametrize(("main", "word"), [(ckpt.main, "inspect"), (data.main, "check")])
def test_commands_leave_in_one_line_at_ctrl_c(
    main: object, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lightning_pfc.commands import ckpt_work, data_work

    def interrupted(options: object) -> int:
        raise KeyboardInterrupt

    for work in (ckpt_work.WORK, data_work.WORK):
        monkeypatch.setitem(work, word, interrupted)  # type: ignore[arg-type]
    assert callable(main)
    assert main([word, "a"]) == 130
    assert capsys.readouterr().err.strip() == f"pfc-{'ckpt' if word == 'inspect' else 'data'} {word}: interrupted"
