"""Links to checkpoints while one thread removes what they lead to and another one changes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_pfc.checkpoint import publish
from lightning_pfc.checkpoint.publish import remove, replace_link, settle_last
from lightning_pfc.strategies import last_link

Changes = Callable[[Path], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("old", "new", "newer"):
        (tmp_path / name).mkdir()
    return tmp_path


def vanish(link: Path) -> None:
    link.unlink(missing_ok=True)


def lead_to_the_newest(link: Path) -> None:
    replace_link(link, link.parent / "newer")


@pytest.mark.parametrize(
    ("change", "left"), [(vanish, None), (lead_to_the_newest, "newer"), (lambda link: None, "new")]
)
@pytest.mark.parametrize("moment", ["looked at", "about to be led away"])
def test_links_that_change_while_a_checkpoint_is_removed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: Changes, left: str | None, moment: str
) -> None:
    link = folder / "last-saving.ckpt"
    replace_link(link, folder / "old")
    read = os.readlink

    def while_looked_at(path: Path) -> str:
        if moment == "looked at":
            monkeypatch.setattr(os, "readlink", read)
            change(link)
        return read(path)

    def while_searched_for(*_: object, **__: object) -> Path:
        if moment == "about to be led away":
            change(link)
        return folder / "new"

    monkeypatch.setattr(os, "readlink", while_looked_at)
    monkeypatch.setattr(publish, "newest", while_searched_for)
    remove(folder / "old")
    monkeypatch.undo()
    assert not (folder / "old").exists()
    assert (os.readlink(link) if link.is_symlink() else None) == left


def test_a_guard_that_vanishes_is_settled(folder: Path) -> None:
    assert settle_last(folder / "last-saving.ckpt", "last")


def test_a_guard_that_a_thread_makes_meanwhile_is_settled_later(monkeypatch: pytest.MonkeyPatch) -> None:
    link = last_link.LastLink()
    link._guards = {Path("a"): "last"}

    def settle(guard: Path, name: str) -> bool:
        link._guards[Path("b")] = name
        return guard == Path("a")

    monkeypatch.setattr(last_link, "settle_last", settle)
    link.settle()
    assert list(link._guards) == [Path("b")]
