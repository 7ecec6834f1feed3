"""Row-sparse gradients are summed and cut into chunks as a dense sum would be."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_pfc.buffers import lazy_zeros
from lightning_pfc.buffers.lazy_zeros import zero_pages
from lightning_pfc.optim.rows import _sum_segments, is_summed, row_chunks, unique_rows

NUM_ROWS = 7


@st.composite
def gradients(draw, padded: bool = False):
    """An uncoalesced gradient with repeated rows, and with padding at row NUM_ROWS."""
    rest = draw(st.sampled_from([(), (1,), (5,), (2, 3)]))
    index = draw(st.lists(st.integers(0, NUM_ROWS if padded else NUM_ROWS - 1), max_size=20))
    values = torch.randn(len(index), *rest, generator=torch.Generator().manual_seed(draw(st.integers(0, 9))))
    index = torch.tensor(index, dtype=torch.int64)
    values[index == NUM_ROWS] = torch.nan  # whatever padding holds is not to be seen
    return torch.sparse_coo_tensor(index[None], values, (NUM_ROWS, *rest), check_invariants=False)


def dense_sum(grad):
    total = torch.zeros(grad.shape)
    for row, value in zip(grad._indices()[0].tolist(), grad._values(), strict=True):
        if row < NUM_ROWS:
            total[row] += value
    return total


@settings(deadline=None)
@given(gradients(padded=True))
def test_unique_rows_adds_up_the_entries_of_a_row(grad):
    rows, values, num_real = unique_rows(grad)
    assert num_real is None
    assert rows.tolist() == sorted({row for row in grad._indices()[0].tolist() if row < NUM_ROWS})
    torch.testing.assert_close(values, dense_sum(grad)[rows])


@settings(deadline=None)
@given(gradients(padded=True))
def test_static_sum_equals_the_dynamic_one(grad):
    if grad._nnz() == 0:
        return
    rows, values, num_real = _sum_segments(grad._indices()[0], grad._values(), NUM_ROWS)
    expected = unique_rows(grad)
    assert rows.shape == grad._indices()[0].shape
    assert int(num_real) == len(expected.rows)
    torch.testing.assert_close(rows[:num_real], expected.rows)
    torch.testing.assert_close(values[:num_real], expected.values)
    # The padding can be summed and written without harm.
    assert (values[num_real:] == 0).all()
    assert (rows[num_real:] == (expected.rows[-1] if len(expected.rows) else 0)).all()


@settings(deadline=None)
@given(gradients(padded=True), st.integers(1, 9))
def test_chunks_are_the_dense_sum(grad, size):
    seen = torch.zeros(NUM_ROWS, dtype=torch.int64)
    total = torch.zeros(grad.shape)
    for chunk in row_chunks(grad, size):
        assert 1 <= len(chunk.rows) <= size
        seen[chunk.rows] += 1
        total[chunk.rows] = chunk.grad
    assert seen.max() <= 1
    torch.testing.assert_close(total, dense_sum(grad))


def test_coalesced_gradient_is_not_copied():
    values = torch.randn(3, 4)
    grad = torch.sparse_coo_tensor(
        torch.tensor([[0, 2, 4]]), values, (NUM_ROWS, 4), is_coalesced=True, check_invariants=True
    )
    assert unique_rows(grad).values.data_ptr() == values.data_ptr()
    chunk, *_ = row_chunks(grad, 2)
    assert chunk.grad.data_ptr() == values.data_ptr()
    assert chunk.rows.tolist() == [0, 2]


def test_dense_gradient_comes_as_slices_of_itself():
    grad = torch.randn(NUM_ROWS, 4)
    chunks = list(row_chunks(grad, 3))
    assert [chunk.rows for chunk in chunks] == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert chunks[1].grad.data_ptr() == grad[3].data_ptr()


def test_accumulated_gradients_are_summed_in_order():
    weight = torch.nn.Parameter(torch.zeros(NUM_ROWS, 2))
    for rows in ([1, 5], [1, 6]):
        part = torch.sparse_coo_tensor(torch.tensor([rows]), torch.ones(2, 2), weight.shape, is_coalesced=True)
        weight.grad = part if weight.grad is None else weight.grad + part
    rows, values, _ = unique_rows(weight.grad)
    assert rows.tolist() == [1, 5, 6]
    assert values[:, 0].tolist() == [2.0, 1.0, 1.0]


def test_other_layouts_are_refused():
    grad = torch.ones(2, 2).to_sparse()  # two sparse dimensions
    with pytest.raises(ValueError, match="not row-sparse"):
        unique_rows(grad)
    with pytest.raises(ValueError, match="not row-sparse"):
        list(row_chunks(grad))


def test_on_cuda_no_shape_depends_on_data():
    # Fake tensors without a ShapeEnv raise where a shape would come from data: there a device makes the host wait.
    with FakeTensorMode():
        index = torch.empty(10, dtype=torch.int64, device="cuda")
        values = torch.empty(10, 4, device="cuda")
        rows, total, num_real = _sum_segments(index, values, NUM_ROWS)
        assert rows.shape == (10,)
        assert total.shape == (10, 4)
        assert {rows.device.type, total.device.type, num_real.device.type} == {"cuda"}
        with pytest.raises(torch._subclasses.fake_tensor.DynamicOutputShapeException):
            index.unique()  # the check can fail


def test_pages_of_rows_that_are_never_written_are_never_committed():
    # A process of its own: the resident memory of this one has a history.
    script = """
import resource, runpy, sys, torch
zero_pages = runpy.run_path(sys.argv[1])["zero_pages"]
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
torch.ones(1000).sum()
before = resident()
state = zero_pages((1_000_000, 128), dtype=torch.float32, device="cpu")  # 512 MB
state.index_copy_(0, torch.arange(0, 1_000_000, 10_000), torch.ones(100, 128))
assert state.sum() == 100 * 128  # reads everything
print(resident() - before)
"""
    try:
        with open("/proc/self/statm"):
            pass
    except OSError:
        pytest.skip("resident memory is read from /proc, which this system does not have")
    result = subprocess.run(
        [sys.executable, "-c", script, lazy_zeros.__file__], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 8e6


def test_zero_pages_is_zeros():
    for shape in ((0, 4), (3,), (5000, 3), (100, 2, 50)):
        for dtype in (torch.float32, torch.bfloat16, torch.uint8):
            pages = zero_pages(shape, dtype=dtype, device="cpu")
            expected = torch.zeros(shape, dtype=dtype)
            assert pages.is_contiguous()
            assert pages.dtype == dtype
            assert torch.equal(pages, expected)
            pages += 1
            assert torch.equal(pages, expected + 1)


def test_a_gradient_of_every_row_is_stepped_in_place_even_when_nobody_says_that_it_is_coalesced() -> None:
    values = torch.randn(NUM_ROWS, 4)
    everything = torch.sparse_coo_tensor(torch.arange(NUM_ROWS)[None], values, (NUM_ROWS, 4))
    assert not everything.is_coalesced()
    chunks = list(row_chunks(everything, 3))
    assert all(isinstance(chunk.rows, slice) for chunk in chunks)
    assert torch.equal(torch.cat([chunk.grad for chunk in chunks]), values)
    assert chunks[0].grad.data_ptr() == everything._values().data_ptr()


@pytest.mark.parametrize("rows", [[1, 1], [2, 0], [0, NUM_ROWS]])
def test_rows_that_repeat_or_descend_or_are_padding_are_not_summed(rows: list[int]) -> None:
    grad = torch.sparse_coo_tensor(torch.tensor([rows]), torch.ones(2, 4), (NUM_ROWS, 4), check_invariants=False)
    assert not is_summed(grad)
