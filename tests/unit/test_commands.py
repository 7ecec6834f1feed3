"""What every command has in common: help at once, and a reader that may leave."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning
import pytest

from lightning_pfc.commands.errors import is_the_users
from lightning_pfc.data.format_names import READABLE, WRITABLE
from lightning_pfc.data.formats.readers import READERS

COMMANDS = re.findall(r'^pfc-(\w+) = "(\S+):main"', (Path(__file__).parents[2] / "pyproject.toml").read_text(), re.M)


def start(module: str, *words: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    where = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, "-m", module, *words], stdout=stdout, stderr=subprocess.PIPE, env=where, text=True
    )


def test_there_are_commands() -> None:
    assert {"train", "eval", "data", "ckpt", "plan", "export", "gallery", "serve"} <= {name for name, _ in COMMANDS}


def test_help_reads_no_pictures() -> None:
    """Nothing that only the work needs is imported to tell what a command takes."""
    code = """import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name).main(["--help"])
    except SystemExit:
        pass
print([name for name in ("numpy", "PIL", "torch") if name in sys.modules], file=sys.stderr)"""
    own = {name: module for name, module in COMMANDS if name not in ("train", "eval")}  # Hydra's import what they like
    done = subprocess.run([sys.executable, "-c", code, *own.values()], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert all(f"pfc-{name}" in done.stdout for name in own)


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="processor time of one child is a matter of POSIX")
@pytest.mark.parametrize(("name", "module"), COMMANDS)
def test_help_is_there_at_once(name: str, module: str) -> None:
    spent: list[float] = []
    while not spent or (min(spent) >= 2 and len(spent) < 3):  # processor time, but of a core that others share
        asked = start(module, "--help")
        assert asked.stdout is not None
        assert asked.stderr is not None
        said, complaints = asked.stdout.read(), asked.stderr.read()
        _, status, used = os.wait4(asked.pid, 0)
        asked.returncode = os.waitstatus_to_exitcode(status)
        assert (asked.returncode, complaints) == (0, "")
        assert f"pfc-{name}" in said
        spent.append(used.ru_utime + used.ru_stime)
    assert min(spent) < 2


@pytest.mark.parametrize(("name", "module"), COMMANDS)
def test_the_reader_of_help_may_leave(name: str, module: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)  # `| head` that has read enough, before the first byte: no pipe's buffer hides what is tested
    asked = start(module, "--help", stdout=writing)
    os.close(writing)
    assert asked.communicate(timeout=60)[1] == ""
    assert asked.returncode in (0, 141), name  # that of the command, or of SIGPIPE where it was not through


@pytest.mark.parametrize("name", ["train", "eval"])
def test_a_run_folder_that_cannot_be_made_is_said_in_one_line(name: str) -> None:
    command = [sys.executable, "-m", f"lightning_pfc.commands.{name}", "output_dir=/dev/null/x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        f"pfc-{name}: /dev/null/x: Not a directory; a part of that path is a file; name another"
    )


def test_what_lightning_and_a_diverged_head_say_is_enough() -> None:
    wrong: list[dict[str, Any]] = [{"accelerator": "cpu", "devices": 0}, {"overfit_batches": 7.5}]
    for words in wrong:
        with pytest.raises(Exception, match=r"devices|overfit_batches") as caught:
            lightning.Trainer(**{**words, "logger": False})
        assert is_the_users(caught.value)
    assert is_the_users(FloatingPointError("embeddings holds NaN or infinity"))
    assert not is_the_users(AttributeError("a fault of ours"))


def test_formats_that_commands_name_are_those_that_are_read() -> None:
    assert sorted(READERS) == sorted(READABLE)
    assert set(WRITABLE) <= set(READABLE)
