"""A row per class: declared once, on the tensor and by the optimizer, and asked of nobody else."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lightning_pfc
from lightning_pfc import PartialFC
from lightning_pfc.distributed.class_rows import class_rows, declare_class_rows
from lightning_pfc.distributed.shard import ClassShard
from lightning_pfc.optim import RowWiseAdagrad, SparseAdamW, SparseSGD
from lightning_pfc.optim.row_state import has_entry_per_class, row_state_keys

PACKAGE = Path(lightning_pfc.__file__).parent


def test_nothing_hangs_on_a_tensor_but_the_record() -> None:
    """Attributes that one room sets and another reads are a bus that no type checker sees."""
    loose = re.compile(r"\.((row|class)_\w+|first_row) = .*# type: ignore|getattr\((param|tensor|\w*weight), ")
    found = [
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in PACKAGE.rglob("*.py")
        for line in path.read_text().splitlines()
        if loose.search(line)
    ]
    assert found == ["distributed/class_rows.py: record = getattr(tensor, _ATTRIBUTE, None)"]


def test_what_a_head_declares() -> None:
    head = PartialFC(embedding_dim=4, num_classes=10, loss="softmax", init_std=0.1).to("cpu")
    records = {name: class_rows(tensor) for name, tensor in head.sharded_tensors().items()}
    assert set(records) == {"weight"}
    record = records["weight"]
    assert record is not None
    assert (record.shard, record.files, record.is_sparse) == (ClassShard(10), None, False)
    assert record.comm is not None
    assert class_rows(nn.Parameter(torch.zeros(10, 4))) is None
    assert class_rows(None) is None
    assert class_rows(head.weight.detach()) is None


def test_declaring_again_keeps_what_optimizers_said() -> None:
    weight = nn.Parameter(torch.zeros(6, 2))
    record = declare_class_rows(weight, ClassShard(6))
    optimizer = SparseSGD([weight], lr=0.1, update_in_backward=True)
    assert record.is_sparse
    assert record.update is not None
    again = declare_class_rows(weight, ClassShard(12, 0, 2))
    assert again is record
    assert (again.shard.num_classes, again.is_sparse) == (12, True)
    del optimizer
    assert not record.is_sparse
    assert not record.update.is_alive


def test_a_saved_parameter_is_read_without_code_of_this_package() -> None:
    head = PartialFC(embedding_dim=4, num_classes=10, loss="arcface").to("cpu")
    file = io.BytesIO()
    torch.save({"weight": head.weight}, file)
    file.seek(0)
    found = torch.load(file, weights_only=True)["weight"]
    assert torch.equal(found, head.weight)
    assert class_rows(found) is None


@pytest.mark.parametrize("make", [SparseSGD, SparseAdamW, RowWiseAdagrad, torch.optim.SGD, torch.optim.AdamW])
def test_the_state_of_every_optimizer_says_where_its_rows_are(make: type[torch.optim.Optimizer]) -> None:
    """As many classes as numbers a center has, so that no shape tells."""
    weight = nn.Parameter(torch.randn(4, 4))
    declare_class_rows(weight, ClassShard(4))
    momentum: dict[str, Any] = {"momentum": 0.9} if "SGD" in make.__name__ else {}
    optimizer = make([weight], lr=0.1, **momentum)  # type: ignore[call-arg]
    weight.grad = torch.randn(4, 4)
    optimizer.step()
    per_class = {k for k, v in optimizer.state[weight].items() if has_entry_per_class(optimizer, k, v, 4)}
    assert per_class == optimizer.state[weight].keys() - {"step"}


def test_factors_of_moments_are_not_told_by_their_shape() -> None:
    """Adafactor on one class: (1, 1) rows, (1, D) columns, of which only the first is this class's."""
    weight = nn.Parameter(torch.randn(1, 8))
    declare_class_rows(weight, ClassShard(1))
    optimizer = torch.optim.Adafactor([weight], lr=0.1)
    weight.grad = torch.randn(1, 8)
    optimizer.step()
    state = optimizer.state[weight]
    assert state["row_var"].shape[0] == state["col_var"].shape[0] == 1
    assert {k for k, v in state.items() if has_entry_per_class(optimizer, k, v, 1)} == {"row_var"}


def test_an_optimizer_of_ones_own_declares_it() -> None:
    class Mine(torch.optim.SGD):
        row_state_keys = frozenset({"seen"})

    optimizer = Mine([nn.Parameter(torch.zeros(3, 2))], lr=0.1)
    assert row_state_keys(optimizer) == {"seen": True}
    assert has_entry_per_class(optimizer, "seen", torch.zeros(3), 3)
    assert not has_entry_per_class(optimizer, "seen", torch.zeros(2), 3)
    assert not has_entry_per_class(optimizer, "table", torch.zeros(3, 2), 3)
