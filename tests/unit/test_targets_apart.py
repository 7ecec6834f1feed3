"""What targets add to the centers' gradient, whatever the threads of this process are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lightning_pfc.heads.softmax.targets_apart import TargetsApart


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_pictures_of_one_class_are_added_up_in_the_order_of_the_batch(two_threads: None) -> None:
    """Float sums depend on their order, so that of threads would give other bits in every run."""
    torch.manual_seed(0)
    batch, classes, dim = 1024, 64, 512
    columns, x = torch.randint(0, classes, (batch, 1)), torch.randn(batch, dim)
    target_grad, start = torch.randn(batch, 1), torch.randn(classes, dim)
    expected = start.clone()
    for row, column in enumerate(columns[:, 0].tolist()):
        expected[column] += target_grad[row] * x[row]
    targets = TargetsApart(columns, [(0, classes)])
    for _ in range(100):
        assert torch.equal(targets.add_center_grad_(0, start.clone(), x, target_grad), expected)
