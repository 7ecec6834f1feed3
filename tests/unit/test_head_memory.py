"""Buffers that steps share: never two users of one piece of memory, and none that is kept for ever."""

from __future__ import annotations

import os

import pytest
import torch

from lightning_pfc import PartialFC
from lightning_pfc.buffers import scratch as memory
from lightning_pfc.buffers.scratch import release_scratch, scratch

LIKE = torch.zeros(1)
SHAPE = (1024, 512)  # 2 MiB


@pytest.fixture(autouse=True)
def own_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_POOL", memory._Pool())


def test_memory_is_used_again_once_the_last_view_is_gone() -> None:
    first = scratch(SHAPE, LIKE)
    place = first.data_ptr()
    view = first[3:5].t()
    del first
    assert scratch(SHAPE, LIKE).data_ptr() != place  # the view still lives there
    sparse = torch.sparse_coo_tensor(torch.arange(512)[None], view, (512, 2))
    del view
    assert scratch(SHAPE, LIKE).data_ptr() != place  # and now a sparse tensor does
    del sparse
    held = [scratch(SHAPE, LIKE) for _ in range(3)]
    assert place in [tensor.data_ptr() for tensor in held]
    assert len({tensor.data_ptr() for tensor in held}) == 3


def test_a_little_less_fits_and_far_less_does_not() -> None:
    place = scratch(SHAPE, LIKE).data_ptr()
    assert scratch((1000, 512), LIKE).data_ptr() == place
    assert scratch((1024, 512), LIKE, torch.bfloat16).dtype == torch.bfloat16
    assert scratch((400, 512), LIKE).data_ptr() != place


def test_what_is_not_asked_for_any_more_is_given_back() -> None:
    scratch((8 * SHAPE[0], SHAPE[1]), LIKE)
    held = [scratch(SHAPE, LIKE) for _ in range(memory._FORGOTTEN_AFTER + 2)]
    assert len(memory._POOL._pages) == len(held)


def test_it_is_given_back_also_when_nothing_new_is_needed() -> None:
    scratch((8 * SHAPE[0], SHAPE[1]), LIKE)
    for _ in range(memory._FORGOTTEN_AFTER + 2):
        scratch(SHAPE, LIKE)
    assert len(memory._POOL._pages) == 1


def test_memory_can_be_given_back_at_once() -> None:
    held = scratch(SHAPE, LIKE)
    scratch(SHAPE, LIKE)
    release_scratch()
    assert len(memory._POOL._pages) == 1
    held.fill_(1.0)


def test_small_tensors_and_other_devices_are_left_to_the_allocator() -> None:
    assert scratch((4,), LIKE).shape == (4,)
    assert scratch(SHAPE, torch.empty(1, device="meta")).is_meta
    assert not memory._POOL._pages


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_takes_memory_of_its_own() -> None:
    place = scratch(SHAPE, LIKE)
    place.fill_(7.0)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            own = scratch(SHAPE, LIKE)
            own.fill_(1.0)  # would crash in memory that the fork left behind
            code = 0 if own.data_ptr() != 0 and len(memory._POOL._pages) == 1 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bool((place == 7.0).all())


def test_a_gradient_that_is_kept_survives_the_next_steps() -> None:
    head = PartialFC(embedding_dim=64, num_classes=8192, loss="ArcFace")
    generator = torch.Generator().manual_seed(0)
    kept = []
    for _ in range(3):
        x = torch.randn(4, 64, generator=generator)
        head(x, torch.randint(8192, (4,), generator=generator)).backward()
        gradient = head.weight.grad
        assert gradient is not None
        kept.append((gradient, gradient.clone()))
        head.weight.grad = None
    assert all(torch.equal(gradient, copy) for gradient, copy in kept)
