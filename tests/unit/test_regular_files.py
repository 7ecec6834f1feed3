"""Opening what a stranger may have left, and reading files by position."""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path

import pytest

from lightning_pfc.data.entries import files_below, folders_in, is_hidden, is_hidden_path
from lightning_pfc.storage import positioned
from lightning_pfc.storage.enclosure import Enclosure
from lightning_pfc.storage.positioned import ChangedFileError, PositionedFile
from lightning_pfc.storage.regular import NotRegularError, open_file, read_regular


def test_only_regular_files_are_opened_and_none_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "to fifo").symlink_to("fifo")
    assert read_regular(tmp_path / "a", 3) == read_regular(tmp_path / "link", 3) == b"abc"
    with open_file(tmp_path / "a") as file:
        assert file.read() == b"abc"
    fifo = "a FIFO, which would be waited for"
    for name, kind in (("fifo", fifo), ("to fifo", fifo), ("/dev/zero", "a device"), (".", "a folder")):
        with pytest.raises(NotRegularError, match=f"is {kind}, not an ordinary file"):
            open_file(tmp_path / name)
    with pytest.raises(NotRegularError, match="has 3 bytes, more than 2"):
        read_regular(tmp_path / "a", 2)
    with pytest.raises(NotRegularError, match="more than the 0 bytes that it says"):
        read_regular("/proc/self/status", 100)
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_file(tmp_path / "none")
    with pytest.raises(NotRegularError, match="no name of a file"):
        open_file("a\0b")
    with pytest.raises(OSError, match=r"symbolic link|Too many levels"):
        read_regular(tmp_path / "link", 3, follow=False)


def test_an_enclosure_follows_links_inside_only(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "a" / "b").mkdir(parents=True)
    outside.mkdir()
    for folder in (root, root / "a" / "b", outside):
        (folder / "f").write_bytes(str(folder).encode())
    (root / "in").symlink_to("a/b")
    (root / "out").symlink_to(outside)
    (root / "file").symlink_to("../outside/f")
    (root / "circle").symlink_to("circle")
    inside = Enclosure(root)
    again = pickle.loads(pickle.dumps(inside))
    for each in (inside, again):
        assert each.read("in/f", 999) == each.read("a/../in/f", 999) == str(root / "a" / "b").encode()
        assert each.read(str(root / "f"), 999) == str(root).encode()
        for name in ("out/f", "file", "../outside/f", str(outside / "f"), "in/../../../outside/f", "..", "/"):
            assert not each.holds(name)
            with pytest.raises(NotRegularError, match=r"outside .*root; if it belongs to the data, say so: allow="):
                each.real(name)
        with pytest.raises(NotRegularError, match="zero byte"):
            each.real("a\0")
        with pytest.raises(OSError, match="circle"):
            each.read("circle", 9)
    for allow in (outside, [str(outside)]):
        assert Enclosure(root, allow).read("file", 999) == Enclosure(root, allow).read("out/f", 999)
    # A folder whose name begins like the root's is another one.
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2" / "f").write_bytes(b"x")
    assert not inside.holds("../root2/f")


def test_hidden_entries_are_no_data(tmp_path: Path) -> None:
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir", "Thumbs.db", "._000.jpg", ".DS_Store", "$RECYCLE.BIN"):
        assert is_hidden(name)
        assert is_hidden_path(f"a/{name}/b.jpg")
    assert not any(map(is_hidden, ("ann", "_private", "MACOSX", "eaDir")))
    assert not is_hidden_path("../a/./b.jpg")
    for name in ("b/2.jpg", "b/._2.jpg", "b/@eaDir/2.jpg", ".x/1.jpg", "a/1.png", "b/1.JPG", "b/c/3.jpg", "b/t.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    inside = Enclosure(tmp_path)
    assert folders_in(inside) == ["a", "b"]
    assert list(files_below(inside, "", (".jpg",))) == ["b/1.JPG", "b/2.jpg", "b/c/3.jpg"]
    (tmp_path / "b" / "c" / "up").symlink_to("..")
    with pytest.raises(NotRegularError, match="which is read already"):
        list(files_below(inside, "b", (".jpg",)))


def test_files_are_read_by_position_by_many_and_never_beyond_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(positioned, "_OPEN", 2)
    files = []
    for number in range(8):
        (tmp_path / f"{number}").write_bytes(bytes([number]) * 5000)
        files.append(PositionedFile(tmp_path / f"{number}"))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    wrong: list[object] = []

    def work(seed: int) -> None:
        try:
            for step in range(300):
                number = (seed + step * 7) % 8
                if files[number].read(step, step + 9) != bytes([number]) * 9:
                    wrong.append((seed, step))
        except Exception as error:  # of a thread, which a test does not see
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 4
    again = pickle.loads(pickle.dumps(files[3]))
    assert again.gather([0, 10], 2) == b"\3\3\3\3"
    assert again.read(5000, 5000) == b""
    for start, stop in ((-1, 3), (4999, 5001), (3, 2)):
        with pytest.raises(IndexError):
            again.read(start, stop)
    monkeypatch.setattr(positioned, "_OPEN", 64)  # whoever else reads in this process must not close this one
    assert again.read(0, 1) == b"\3"
    os.truncate(tmp_path / "3", 100)
    assert again.read(90, 100) == b"\3" * 10
    for read in (lambda: again.read(90, 101), lambda: again.gather([0, 99], 2)):
        with pytest.raises(ChangedFileError, match="has shrunk from 5000 to 100 bytes"):
            read()
    with pytest.raises(ChangedFileError, match="has shrunk"):
        pickle.loads(pickle.dumps(files[3])).read(0, 200)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(NotRegularError, match="a FIFO"):
        PositionedFile(tmp_path / "fifo")
