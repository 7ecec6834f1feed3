"""Optimizer state is kept by place: other groups of parameters are refused by name, before anything is restored."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import timm.optim
import torch
from torch import nn

from lightning_pfc.checkpoint import CheckpointError
from lightning_pfc.optim import SparseSGD
from lightning_pfc.strategies.resume_checks import (
    Differences,
    check_same_groups,
    check_same_optimizers,
    describe_optimizers,
)


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


class SGD(torch.optim.Optimizer):
    """Somebody's own rule, under a name of torch's."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})


def test_an_optimizer_of_the_same_name_from_another_library_is_refused() -> None:
    """timm and torch both have an Adafactor, a RAdam and a Muon, which keep other things under the same names."""
    layer = nn.Linear(2, 2)
    Clipped = type("SGD", (torch.optim.SGD,), {"__module__": "elsewhere"})
    made = [kind(layer.parameters(), lr=0.1) for kind in (torch.optim.SGD, SparseSGD, SGD, Clipped)]
    for there in made:
        for here in made:
            checkpoint = {"optimizer_states": [there.state_dict()]}
            records = describe_optimizers([there])
            if (there is made[2]) == (here is made[2]):
                check_same_optimizers(checkpoint, records, [here])
                continue
            with pytest.raises(CheckpointError, match=r"SGD of .*, and this run has the (Sparse)?SGD of"):
                check_same_optimizers(checkpoint, records, [here])
    theirs = timm.optim.Adafactor(layer.parameters(), lr=0.1)
    with pytest.raises(CheckpointError, match="the Adafactor of timm, and this run has the Adafactor of torch"):
        check_same_optimizers(
            {"optimizer_states": [theirs.state_dict()]},
            describe_optimizers([theirs]),
            [torch.optim.Adafactor(layer.parameters(), lr=0.1)],
        )
