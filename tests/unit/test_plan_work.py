"""Counting what a step makes a device do, and how long that takes on a device that is not there."""

from __future__ import annotations

import pytest
import torch

import lightning_pfc.heads.sampling.draw_kernel
import lightning_pfc.optim.row_kernels  # noqa: F401  registers its operations
from lightning_pfc import kernels
from lightning_pfc.kernels import choice
from lightning_pfc.kernels.library import OPERATIONS
from lightning_pfc.optim import RowWiseAdagrad, SparseAdamW, SparseSGD
from lightning_pfc.planning import Setup, head_memory
from lightning_pfc.planning.fake_step import as_a_device_leaves_them, fake_head
from lightning_pfc.planning.live_bytes import LiveBytes
from lightning_pfc.planning.memory import ALWAYS
from lightning_pfc.planning.model import H200, step_time
from lightning_pfc.planning.work import Work, WorkLog


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def test_views_and_host_scalars_are_left_out():
    x, scalar = empty(8, 4), torch.tensor(2.0)
    with WorkLog() as log:
        y = x[2:].view(-1)[None].expand(3, 24).detach().t()
        torch.empty_like(x)
        scalar * 3 + 1
    assert log.works == []
    assert y.shape == (24, 3)
    with WorkLog() as log:
        x * scalar
        x.add_(1.0)
        torch.zeros_like(x)
    assert [(work.name, work.launches) for work in log.works] == [("mul", 1), ("add_", 1), ("zeros_like", 1)]


def test_bytes_of_rows_are_those_that_are_touched():
    weight, index = empty(1_000_000, 64), empty(100, dtype=torch.int64)
    with WorkLog() as log:
        rows = weight.index_select(0, index)
        weight.index_add_(0, index, rows)
        weight.index_copy_(0, index, rows)
    block, numbers = 100 * 64 * 4, 100 * 8
    assert [work.bytes for work in log.works] == [numbers + 2 * block, numbers + 3 * block, numbers + 2 * block]


def test_flops_of_products_and_their_type():
    a, b = empty(32, 64, dtype=torch.bfloat16), empty(64, 16, dtype=torch.bfloat16)
    with WorkLog() as log:
        a @ b
        torch.addmm(empty(32, 16), empty(32, 64), empty(64, 16))
    assert [work.flops for work in log.works] == [2 * 32 * 64 * 16] * 2
    assert [work.dtype for work in log.works] == [torch.bfloat16, torch.float32]


def test_a_backward_pass_is_counted():
    x = empty(4, 8).requires_grad_()
    with WorkLog() as log:
        (x * 2).sum().backward()
    assert [work.name for work in log.works] == ["mul", "sum", "ones_like", "mul"]


def test_a_wait_is_marked():
    with WorkLog("cpu") as log:
        torch.arange(4.0).sum().item()
    assert [work.waits for work in log.works] == [False, False, True]


@pytest.mark.parametrize("name", sorted(choice._PLANTED))
def test_operations_count_their_launches_and_the_rows_they_touch(name):
    for arguments in choice._PLANTED[name](torch.device("cpu")):
        given = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments]
        with WorkLog() as log:
            OPERATIONS[name](*given)
        (work,) = log.works
        assert work.launches == OPERATIONS[name].count_launches(given)
        largest = sum(2 * a.numel() * a.element_size() for a in given if isinstance(a, torch.Tensor))
        assert 0 < work.bytes <= 3 * largest + 4096


def test_a_gather_and_an_update_of_few_rows_move_few_bytes():
    weight, state, index = empty(10_000_000, 512), empty(10_000_000, 512), empty(1000, dtype=torch.int64)
    grad, step = empty(1000, 512), empty(1, dtype=torch.int64)[0]
    with WorkLog() as log:
        kernels.gather_normalize_round(weight, index, torch.bfloat16)
        options = empty(3, dtype=torch.float64)
        OPERATIONS["sgd_rows_"](weight, state, None, grad, index, None, options, step, 0, [0, 0], True, False)
    numbers = 1000 * 512
    assert [work.bytes for work in log.works] == [6 * numbers + 12_000, 20 * numbers + 8000]


def test_time_is_the_longer_of_operations_and_bytes_and_of_device_and_host():
    product = Work("mm", 1, 10**6, flops=10**12, dtype=torch.bfloat16)
    copy = Work("copy_", 1, 43 * 10**9)
    time = step_time([product, copy], H200)
    assert time.products == pytest.approx(1e12 / (0.75 * 788e12))
    assert time.memory == pytest.approx(0.01 / 0.80)
    assert time.eager == time.graph == time.products + time.memory
    many = step_time([Work("add", 1, 100)] * 1000, H200)
    assert many.eager == pytest.approx(5e-3)
    assert many.graph == pytest.approx(1.5e-3)
    single = Work("mm", 1, 10**6, flops=10**12, dtype=torch.float32)
    assert step_time([single], H200).products > 7 * step_time([single], H200, tf32=True).products


MEMORY = [  # classes, batch, rate, optimizer, update in backward, memory budget, type of the centers
    (1_000_000, 1024, 1.0, "sgd", True, 128 << 20, "float32"),
    (1_000_000, 8192, 1.0, "sgd", True, 128 << 20, "float32"),
    (1_000_000, 1024, 0.1, "sgd", True, 8 << 30, "float32"),
    (1_000_000, 1024, 0.1, "sgd", False, 8 << 30, "float32"),
    (1_000_000, 1024, 0.1, "adamw", True, 128 << 20, "float32"),
    (100_000, 128, 1.0, "adamw", True, 64 << 20, "float32"),
    (100_000, 128, 0.1, "adamw", False, 64 << 20, "float32"),
    (1_000_000, 1024, 0.1, "adagrad", True, 128 << 20, "bfloat16"),
]


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize(("classes", "batch", "rate", "optimizer", "in_backward", "budget", "dtype"), MEMORY)
def test_the_memory_of_a_gpu_is_what_a_step_holds(
    classes, batch, rate, optimizer, in_backward, budget, dtype, precision
):
    """What a step holds above centers and state, counted on tensors without storage, beside the plan."""
    head = fake_head(
        embedding_dim=512, num_classes=classes, loss="cosface", sample_rate=rate, precision=precision,
        memory_budget=budget, dtype=dtype,
    )  # fmt: skip
    kinds = {"sgd": (SparseSGD, {"momentum": 0.9}), "adamw": (SparseAdamW, {}), "adagrad": (RowWiseAdagrad, {})}
    kind, options = kinds[optimizer]
    made = kind(head.parameters(), lr=0.1, update_in_backward=in_backward, **options)
    x = torch.empty(batch, 512, dtype=torch.bfloat16, device="meta", requires_grad=True)
    labels = torch.empty(batch, dtype=torch.int64, device="meta")
    for _ in range(2):  # the first one makes the state
        x.grad = None
        with LiveBytes() as live:
            head(x, labels).backward()
            as_a_device_leaves_them(made)
            made.step()
            made.zero_grad()
    setup = Setup(
        classes=classes, batch=batch, rate=rate, optimizer=optimizer, update_in_backward=in_backward, dtype=dtype,
        memory_budget=budget, precision=precision, embedding_dtype="bfloat16", kernels=True,
    )  # fmt: skip
    planned = head_memory(setup)
    above = planned.peak - sum(term.bytes for term in planned.terms if set(term.phases) == set(ALWAYS))
    assert 0.97 <= above / live.peak <= 1.08, f"{above / 1e6:.0f} MB planned, {live.peak / 1e6:.0f} held"
