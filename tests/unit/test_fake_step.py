"""A step of a head counted on tensors without storage is the step that it makes on real ones."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from lightning_pfc import PartialFC
from lightning_pfc.optim import SparseSGD
from lightning_pfc.planning.fake_step import fake_head, fake_step
from lightning_pfc.planning.work import WorkLog

OPTIONS = {"embedding_dim": 16, "num_classes": 600, "loss": "cosface", "chunk_size": 200}


def sgd(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    return SparseSGD(parameters, lr=0.1, momentum=0.9)


def test_products_and_their_flops_are_those_of_a_real_step():
    fake = fake_step(fake_head(**OPTIONS), sgd, 8)
    head = PartialFC(**OPTIONS)
    head.to("cpu")
    with WorkLog("cpu") as real:
        head(torch.randn(8, 16, requires_grad=True), torch.arange(8)).backward()
    of_targets = Counter({"bmm": 1})  # B products of D, which are a part of an operation where there are kernels
    names = [Counter(work.name for work in works if work.flops) for works in (fake.works, real.works)]
    assert names[0] + of_targets == names[1]
    assert sum(work.flops for work in fake.works) + 2 * 8 * 16 == real.flops


@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_ten_million_classes_take_no_memory_and_wait_for_nothing(rate):
    head = fake_head(**(OPTIONS | {"num_classes": 10_000_000, "chunk_size": 5_000_000}), sample_rate=rate)
    step = fake_step(head, sgd, 64)
    assert head.weight.is_meta
    assert step.forward
    assert step.backward
    assert not any(work.waits for work in step.works)
    assert sum(work.bytes for work in step.works) > 10_000_000 * rate * 16 * 4
