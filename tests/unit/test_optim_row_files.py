"""Rows in files equal rows in memory, survive the process, and are never damaged."""

from __future__ import annotations

import mmap
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_pfc.distributed.class_rows import declare_class_rows
from lightning_pfc.distributed.shard import ClassShard
from lightning_pfc.optim import RowWiseAdagrad, SparseAdamW, SparseSGD
from lightning_pfc.storage.row_files import RowFiles, row_files

SHAPE = (50, 12)


def centers(files=None, dtype=torch.float32):
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows = start.clone() if files is None else files.tensor("weight", SHAPE, dtype, fill=lambda out: out.copy_(start))
    weight = nn.Parameter(rows)
    declare_class_rows(weight, ClassShard(len(weight))).files = files
    return weight


def train(weight, optimizer, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        index = torch.randperm(len(weight), generator=generator)[:20].sort().values
        values = torch.randn(20, weight.shape[1], generator=generator).to(weight.dtype)
        weight.grad = torch.sparse_coo_tensor(
            index[None], values, weight.shape, is_coalesced=True, check_invariants=False
        )
        if (files := row_files(weight)) is not None:
            files.prefetch(index)
        optimizer.step()


@pytest.mark.parametrize(
    ("optimizer_class", "options"),
    [
        (SparseSGD, {"momentum": 0.9}),
        (SparseAdamW, {"state_dtype": "int8"}),
        (RowWiseAdagrad, {}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_numbers_as_in_memory_and_after_a_restart(optimizer_class, options, dtype, tmp_path):
    expected = centers(dtype=dtype)
    optimizer = optimizer_class([expected], lr=0.1, **options)
    train(expected, optimizer, range(6))

    files = RowFiles(tmp_path / "rows")
    weight = centers(files, dtype)
    first = optimizer_class([weight], lr=0.1, **options)
    train(weight, first, range(3))
    files.flush()
    files.close()
    step = first.state[weight]["step"]
    del weight, first

    files = RowFiles(tmp_path / "rows")
    assert "weight" in files
    weight = centers(files, dtype)  # what is on disk, not what would be drawn
    second = optimizer_class([weight], lr=0.1, **options)
    second.allocate_state()
    second.state[weight]["step"].copy_(step)
    train(weight, second, range(3, 6))
    files.close()
    assert torch.equal(weight, expected)
    for key, value in optimizer.state[expected].items():
        assert torch.equal(second.state[weight][key], value)
        assert key == "step" or (tmp_path / "rows" / f"{key}.rows").exists()


def test_loaded_state_stays_in_its_file(tmp_path):
    source = centers()
    optimizer = SparseSGD([source], lr=0.1, momentum=0.9)
    train(source, optimizer, range(2))
    files = RowFiles(tmp_path)
    weight = centers(files)
    other = SparseSGD([weight], lr=0.1, momentum=0.9)
    other.load_state_dict(optimizer.state_dict())
    files.flush()
    on_disk = RowFiles(tmp_path).tensor("momentum_buffer", SHAPE, torch.float32)
    assert torch.equal(on_disk, optimizer.state[source]["momentum_buffer"])


def test_interrupted_start_leaves_no_file(tmp_path):
    files = RowFiles(tmp_path)

    def interrupted(out):
        out[:10] = 1.0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.tensor("weight", SHAPE, torch.float32, fill=interrupted)
    assert list(tmp_path.iterdir()) == []
    assert not files.tensor("weight", SHAPE, torch.float32).any()


def test_full_disk_is_an_error_before_anything_is_written(tmp_path):
    with pytest.raises(OSError, match="larger disk"):
        RowFiles(tmp_path).tensor("weight", (10**12, 1000), torch.float32)  # four petabytes
    assert list(tmp_path.iterdir()) == []


def test_files_that_do_not_fit_are_refused_and_left_alone(tmp_path):
    RowFiles(tmp_path).tensor("weight", SHAPE, torch.float32).fill_(3.0)
    path = tmp_path / "weight.rows"
    content = path.read_bytes()

    for shape, dtype in (((51, 12), torch.float32), (SHAPE, torch.bfloat16)):
        with pytest.raises(ValueError, match="another folder"):
            RowFiles(tmp_path).tensor("weight", shape, dtype)
    assert path.read_bytes() == content

    for damaged, message in (
        (content[:-1], "truncated"),
        (content[:100], "not a file of rows"),
        (b"", "not a file of rows"),
        (b"x" * len(content), "not a file of rows"),
        (content[:8] + b"{" * 100 + content[108:], "damaged"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            RowFiles(tmp_path).tensor("weight", SHAPE, torch.float32)
        assert path.read_bytes() == damaged


def test_types_and_names_are_checked(tmp_path):
    with pytest.raises(ValueError, match="complex64"):
        RowFiles(tmp_path).tensor("weight", SHAPE, torch.complex64)
    with pytest.raises(ValueError, match="not a word"):
        RowFiles(tmp_path).tensor("../weight", SHAPE, torch.float32)


def test_page_runs_cover_the_rows_and_little_else(tmp_path):
    files = RowFiles(tmp_path)
    files.tensor("weight", (10_000, 100), torch.float32)  # rows of 400 bytes
    opened = files._open["weight"]
    rows = torch.tensor([0, 1, 2, 500, 501, 9_999])
    runs = list(opened.page_runs(rows))
    assert len(runs) == 3
    assert sum(length for _, length in runs) <= 5 * mmap.PAGESIZE
    for row in rows.tolist():
        start, stop = 4096 + row * 400, 4096 + (row + 1) * 400
        assert any(offset <= start and stop <= offset + length for offset, length in runs)
    assert list(opened.page_runs(rows[:0])) == []


def test_prefetch_thread_ends(tmp_path):
    before = threading.active_count()
    files = RowFiles(tmp_path)
    files.tensor("weight", (1000, 100), torch.float32)
    files.prefetch(torch.arange(0, 1000, 7))
    assert threading.active_count() == before + 1
    files.close()
    assert threading.active_count() == before


def test_a_program_may_end_while_rows_are_read_ahead(tmp_path: Path) -> None:
    program = (
        "import sys, torch\n"
        "from lightning_pfc.storage.row_files import RowFiles\n"
        "files = RowFiles(sys.argv[1])\n"
        "files.tensor('weight', (500_000, 64), torch.float32)\n"
        "files.prefetch(lambda: torch.arange(0, 500_000, 3) + torch.zeros(1, dtype=torch.int64).sort().values)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, "Exception" in done.stderr) == (0, False), done.stderr


def test_rows_that_another_process_has_open_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="no locks on Windows")
    rows = RowFiles(tmp_path).tensor("weight", SHAPE, torch.float32).fill_(3.0)
    program = (
        "import sys, torch\n"
        "from lightning_pfc.storage.row_files import RowFiles\n"
        f"rows = RowFiles(sys.argv[1]).tensor('weight', {SHAPE}, torch.float32)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    last = refused.stderr.strip().splitlines()[-1]
    assert refused.returncode == 1
    assert last.startswith(f"ValueError: {tmp_path / 'weight.rows'} is in use by another process")
    assert "another row_folder" in last
    assert (rows == 3.0).all()
    del rows  # and with it the file
    assert subprocess.run(command, check=False).returncode == 0
