"""Every kernel is compiled for every chip, on a machine that has none, and what the assembler says is looked at."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys

import pytest
import torch

from lightning_pfc.kernels import __main__ as command
from lightning_pfc.kernels import cases
from lightning_pfc.kernels.launching import Launch
from lightning_pfc.kernels.tiles import CHIPS, SHARED_BYTES

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
LINE = re.compile(
    r"(?P<name>\w+) +sm_(?P<chip>\d+) +registers +(?P<registers>\d+) +stack (?P<stack>\d+) +spills (?P<spills>\d+) +"
    r"shared +(?P<shared>\d+) +matrix instructions (?P<matrix>\d+)"
)


@pytest.mark.timeout(600)
def test_every_kernel_compiles_for_every_chip_without_stack_or_spills(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "lightning_pfc.kernels", "--compile", *map(str, CHIPS), "--out", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=560,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    assert last.endswith("0 with faults")
    for chip in CHIPS:
        of_chip = [match for match in map(LINE.fullmatch, lines) if match and int(match["chip"]) == chip]
        names = {match["name"] for match in of_chip}
        assert len(names) == len(of_chip) >= 20
        for kernel in ("unit_rows", "exponentials", "target_cosines", "center_gradients", "sgd_rows", "adamw_rows",
                       "adagrad_rows", "take_negatives", "write_drawn"):  # fmt: skip
            assert any(name.startswith(kernel) for name in names)
        for match in of_chip:
            assert match["stack"] == match["spills"] == "0"
            assert int(match["shared"]) <= SHARED_BYTES[chip]
            assert (tmp_path / f"{match['name']}.sm_{chip}.cubin").read_bytes()[:4] == b"\x7fELF"
    assert {path.suffix for path in tmp_path.iterdir()} == {".cubin"}
    assert len(list(tmp_path.iterdir())) == len(lines)


def faulty(name: str, size: int) -> Launch:
    from tests.unit import faulty_kernels

    tensor = torch.empty(size, size, dtype=torch.float32, device="meta")
    return Launch(getattr(faulty_kernels, name), (1,), (tensor, tensor), {"SIZE": size, "num_warps": 1})


@pytest.mark.parametrize(("name", "size", "said"), [("spills", 64, "spills"), ("breaks", 64, "does not compile")])
def test_a_kernel_that_spills_or_breaks_is_noticed(name, size, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cases, "compile_cases", lambda chip: [(name, faulty(name, size))])
    assert command.main(["--compile", "80", "--out", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert said in out
    assert "Traceback" not in out
    assert out.splitlines()[-1].endswith("1 with faults")


def test_matrix_instructions_are_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cases, "compile_cases", lambda chip: [("spills", faulty("spills", 16))])
    command.main(["--compile", "80", "--out", str(tmp_path)])
    match = LINE.match(capsys.readouterr().out)
    assert match is not None
    assert int(match["matrix"]) > 0


def test_a_kernel_that_needs_more_shared_memory_than_there_is_is_noticed(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SHARED_BYTES, 80, 100)
    monkeypatch.setattr(cases, "compile_cases", lambda chip: [("spills", faulty("spills", 16))])
    assert command.main(["--compile", "80", "--out", str(tmp_path)]) == 1
    assert "bytes of shared memory, the chip has 100" in capsys.readouterr().out


def test_what_cannot_be_done_is_said_in_one_line(tmp_path, capsys, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    for arguments, said in (
        (["--compile", "75"], "--compile 75 is not a chip"),
        (["--compile", "80", "--out", str(file)], "is a file"),
    ):
        assert command.main(arguments) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    monkeypatch.setattr(command, "has_triton", lambda: False)
    assert command.main(["--compile", "80"]) == 2
    assert "Triton is not installed" in capsys.readouterr().err
