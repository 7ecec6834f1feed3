"""Kernels given views: numbers that do not lie side by side are read where they are, or refused; never others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import lightning_pfc.heads.sampling.draw_kernel
import lightning_pfc.optim.row_kernels  # noqa: F401  registers its operations
from lightning_pfc.kernels import choice
from lightning_pfc.kernels.library import OPERATIONS

CPU = torch.device("cpu")


def strided(x: Tensor) -> Tensor:
    """The same numbers, none beside its neighbour: every other one of a matrix that lies the other way round."""
    if x.dim() == 0 or x.numel() == 0:
        return x
    wide = x.new_zeros((*x.shape[::-1][:-1], 2 * x.shape[0]))
    view = wide.permute(*reversed(range(x.dim())))[::2]
    view.copy_(x)
    return view


def views_of(name: str) -> list[tuple[int, int]]:
    """Every tensor that is read, in every planted call: number of the call, place of the argument."""
    writes = OPERATIONS[name].writes
    calls = choice._PLANTED[name](CPU)
    return [
        (call, place)
        for call, arguments in enumerate(calls)
        for place, value in enumerate(arguments)
        if isinstance(value, Tensor) and value.dim() and not writes[place]
    ]


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_a_view_is_read_where_its_numbers_are(name):
    operation, found = OPERATIONS[name], []
    for call, place in views_of(name):
        arguments: list[Any] = list(choice._PLANTED[name](CPU)[call])
        twins = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
        arguments[place] = strided(arguments[place])
        results = operation(*arguments, kernels=OPERATIONS)
        expected = operation.twin(*twins)
        pairs = zip(
            choice._outcome(operation, results, arguments), choice._outcome(operation, expected, twins), strict=True
        )
        if max(choice._apart(one, other) for one, other in pairs) > 1.0:
            found.append((call, place))
    assert not found


@pytest.mark.parametrize("name", [name for name in sorted(OPERATIONS) if any(OPERATIONS[name].writes)])
def test_a_view_that_would_be_written_is_refused(name):
    operation, refused = OPERATIONS[name], 0
    for call, given in enumerate(choice._PLANTED[name](CPU)):
        for place, writes in enumerate(operation.writes):
            if not writes or not isinstance(given[place], Tensor) or given[place].dim() < 2:
                continue
            arguments: list[Any] = list(choice._PLANTED[name](CPU)[call])
            arguments[place] = strided(arguments[place])
            with pytest.raises(ValueError, match="kernel writes it in place; give a contiguous tensor"):
                operation(*arguments, kernels=OPERATIONS)
            refused += 1
    assert refused
