"""Names of classes that ``pfc-ckpt`` is given: no two the same, none empty, each one line; centers are directions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightning_pfc.commands.ckpt import main
from tests.unit.test_interchange import CLASSES, DIM, checkpoint

NAMES = [f"p{row}" for row in range(CLASSES)]
TWICE = [*NAMES[:7], "p2", *NAMES[8:]]

BAD = [
    (TWICE, ["drop", "--classes", "p2"], "classes 2 and 7 are both named 'p2'"),
    (TWICE, ["fuse", "--classes", "p2,p3"], "classes 2 and 7 are both named 'p2'"),
    (TWICE, ["append", "--count", "1", "--names", "new"], "classes 2 and 7 are both named 'p2'"),
    (["", *NAMES[1:]], ["drop", "--classes", "p2"], "name 0 is ''"),
    (NAMES, ["append", "--count", "1", "--names", "p3"], "classes 3 and 11 are both named 'p3'"),
    (NAMES, ["append", "--count", "2", "--names", "new,new"], "classes 11 and 12 are both named 'new'"),
    (NAMES, ["append", "--count", "2", "--names", "new,"], "--names: name 1 is ''"),
    (NAMES, ["append", "--count", "1", "--names", "a\nb"], "--names: name 0 is 'a\\nb'"),
]


@pytest.mark.parametrize(("names", "words", "said"), BAD)
def test_names_that_do_not_say_whose_a_row_is(
    names: list[str], words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "names.txt"
    listed.write_text("".join(f"{name}\n" for name in names))
    ckpt, out = checkpoint(tmp_path), tmp_path / "out.ckpt"
    assert main([words[0], str(ckpt), str(out), *words[1:], "--identities", str(listed)]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["names.txt", "ours.ckpt"]


def centers(row: int, value: float) -> torch.Tensor:
    made = torch.ones(3, DIM)
    made[row] = value
    return made


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (centers(1, float("nan")), "row 1 has numbers that are not finite"),
        (centers(2, 0.0), "row 2 is all zeros, and so has no direction; 1 are"),
        (torch.ones(0, DIM), "floats of shape (N, D) are needed"),
    ],
)
def test_centers_that_are_none(
    given: torch.Tensor, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "c.safetensors", tmp_path / "out.ckpt"
    save_file({"centers": given}, file)
    assert main(["append", str(checkpoint(tmp_path)), str(out), "--centers", str(file)]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_more_classes_than_there_is_room_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said at once, not when the disk is full."""
    ckpt = checkpoint(tmp_path)
    assert main(["append", str(ckpt), str(tmp_path / "out.ckpt"), "--count", str(10**14)]) == 1
    told = capsys.readouterr().err
    assert " bytes, and " in told
    assert "are free there. Make room, or name another place." in told
    assert told.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["ours.ckpt"]
