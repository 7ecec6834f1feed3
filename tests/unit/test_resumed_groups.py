"""Optimizer state is kept by place: other groups of parameters are refused by name, before anything is restored."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_pfc.checkpoint import CheckpointError
from lightning_pfc.optim import SparseSGD
from lightning_pfc.strategies.resumed import Differences, check_same_groups, describe_optimizers


def test_other_groups_are_refused() -> None:
    first, second = (nn.Linear(2, 2) for _ in range(2))
    everything: list[nn.Parameter] = [*first.parameters(), *second.parameters()]
    one = torch.optim.SGD(everything, lr=0.1)
    two = torch.optim.SGD([{"params": first.parameters()}, {"params": second.parameters()}], lr=0.1)
    moved = torch.optim.SGD([{"params": everything[:1]}, {"params": everything[1:]}], lr=0.1)
    check_same_groups([two.state_dict()], [two])
    for there, here, sizes in (
        (one, two, r"\[4\] in the checkpoint and of \[2, 2\]"),
        (two, moved, r"\[2, 2\].*\[1, 3\]"),
    ):
        with pytest.raises(CheckpointError, match=rf"SGD has its parameters in groups of {sizes}.*init_from="):
            check_same_groups([there.state_dict()], [here])


def test_the_row_sparse_form_is_another_option() -> None:
    layer = nn.Linear(2, 2)
    dense, sparse = torch.optim.SGD(layer.parameters(), lr=0.1), SparseSGD(layer.parameters(), lr=0.1)
    there, here = describe_optimizers([dense]), describe_optimizers([sparse])
    assert Differences(there, [dense.state_dict()], there).said == []
    [said] = Differences(there, [dense.state_dict()], here).said
    assert said == "optimizer: SGD in the checkpoint, SparseSGD in this run (row_sparse), in force: this run's"
