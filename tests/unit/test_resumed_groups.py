"""Optimizer state is kept by place: other groups of parameters are refused by name, before anything is restored."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_pfc.checkpoint import CheckpointError
from lightning_pfc.strategies.resumed import check_same_groups


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
