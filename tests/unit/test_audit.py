"""The audit hook that other tests rely on sees what it should see, and nothing else."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.audit import watch

HERE = "tests.unit.test_audit:act"


def act(what: str, path: str = "", other: str = "") -> str:
    """Does one thing."""
    if what == "read":
        return Path(path).read_text()
    if what == "fd":
        file = os.open(path, os.O_RDONLY)
        with open(file) as opened:
            return opened.read()
    if what == "write":
        Path(path).write_text("x")
    if what == "rename":
        os.rename(path, other)
    if what == "list":
        return ",".join(sorted(os.listdir(path)))
    if what == "connect":
        with socket.socket() as s:
            s.connect_ex(("127.0.0.1", 9))
    if what == "process":
        subprocess.run([sys.executable, "-c", ""], check=False)
    if what == "eval":
        return str(eval("1 + 1"))
    if what == "pickle":
        pickle.loads(b"cbuiltins\nlen\n.")
    if what == "import":
        import xml.dom.minidom

        return xml.dom.minidom.__name__
    if what == "big":
        return str(len(b"x" * (64 << 20)))
    if what == "fail":
        raise KeyError("here")
    if what == "crash":
        os.abort()
    if what == "hang":
        time.sleep(60)
    return ""


def test_what_reading_must_not_do_is_seen(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.txt").write_text("text")
    (inside / "link.txt").symlink_to(outside / "a.txt")
    cases = {
        "read": {"what": "read", "path": str(inside / "a.txt")},
        "fd": {"what": "fd", "path": str(inside / "a.txt")},
        "list": {"what": "list", "path": str(inside)},
        "import": {"what": "import"},
        "big": {"what": "big"},
        "fail": {"what": "fail"},
        "read outside": {"what": "read", "path": str(outside / "a.txt")},
        "read a link": {"what": "read", "path": str(inside / "link.txt")},
        "list outside": {"what": "list", "path": str(outside)},
        "write inside": {"what": "write", "path": str(inside / "b.txt")},
        "rename": {"what": "rename", "path": str(inside / "b.txt"), "other": str(inside / "c.txt")},
        "connect": {"what": "connect"},
        "process": {"what": "process"},
        "eval": {"what": "eval"},
        "pickle": {"what": "pickle"},
    }
    seen = watch(HERE, cases, readable=[inside], warm={"what": "list", "path": str(inside)})
    assert {name for name, found in seen.items() if not found.offences} == {
        "read", "fd", "list", "import", "big", "fail",
    }  # fmt: skip
    assert seen["read"].value == seen["fd"].value == "text"
    assert (seen["fail"].error, seen["fail"].message) == ("KeyError", "'here'")
    assert seen["big"].grown > 50
    assert "out/a.txt" in seen["read outside"].offences[0]
    written = watch(HERE, {"w": {"what": "write", "path": str(inside / "d.txt")}}, readable=[], writable=[inside])
    assert written["w"].offences == []


def test_a_crash_and_a_hang_are_told_apart_from_an_error() -> None:
    with pytest.raises(AssertionError, match=r"status -6 after \['case c'\]"):
        watch(HERE, {"c": {"what": "crash"}}, readable=[])
    with pytest.raises(AssertionError, match=r"status 1 after \['case h'\](.|\n)*Timeout"):
        watch(HERE, {"h": {"what": "hang"}}, readable=[], timeout=2)
