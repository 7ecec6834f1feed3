"""What the gradient filter leaves out of a chunk: the weakest classes, as many as its tolerance allows."""

from __future__ import annotations

import torch

from lightning_pfc.heads.negligible import Negligible


def test_the_weakest_go_first_until_the_budget_is_spent():
    filter_ = Negligible(0.1, torch.tensor([1.0]), num_classes=8)  # energy 0.01 in all
    live = filter_.live(torch.tensor([2e-3, 9.0, 1e-3, 6e-3, 5e-4, 8.0, 1e-3, 1.5e-3]))  # 6e-3 fit, 6e-3 more do not
    assert live is not None
    assert live.tolist() == [1, 3, 5]


def test_what_a_chunk_leaves_over_is_there_for_the_next():
    filter_ = Negligible(0.1, torch.tensor([1.0]), num_classes=8)
    assert filter_.live(torch.tensor([1.0, 2.0, 3.0, 4.0])) is None
    live = filter_.live(torch.tensor([3e-3, 3e-3, 3e-3, 1.0]))  # more than this chunk's own 5e-3
    assert live is not None
    assert live.tolist() == [3]
