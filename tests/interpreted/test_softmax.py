"""The kernels of the softmax beside their twins in float64: shapes that do not divide, padding, several targets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_pfc import kernels
from lightning_pfc.buffers.lazy_zeros import zero_pages
from lightning_pfc.kernels.gpu import calls
from lightning_pfc.kernels.launching import counted_launches
from lightning_pfc.kernels.library import OPERATIONS

WIDTHS = [64, 100, 512, 1024]
# One rounding to the nearest: half a unit in the last place of 8, 11 and 24 bits, and a little for float32 before it.
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2e-6}


def relative(found: Tensor, expected: Tensor) -> float:
    """Frobenius norm of the difference over that of what is expected; NaN if anything is."""
    return float((found.double() - expected).norm() / expected.norm())


def sampled(rows: int, count: int) -> Tensor:
    return torch.randperm(rows)[:count].sort().values


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_sampled_rows_are_of_unit_length_and_rounded_once(width, kept, dtype):
    torch.manual_seed(width)
    weight = torch.randn(61, width).to(kept)
    weight[7] = 0.0
    for index in (sampled(61, 23), None):
        unit, inverse = kernels.gather_normalize_round(weight, index, dtype)
        expected, exact = OPERATIONS["gather_normalize_round"].twin(weight.double(), index, torch.float64, True)
        assert unit.dtype == dtype
        assert inverse.dtype == torch.float32
        assert relative(inverse, exact) < 1e-6
        assert ((unit.double() - expected).abs() <= ROUNDING[dtype] * expected.abs() + 1e-7).all()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
def test_gradients_of_centers_from_those_of_their_unit_rows(width, kept):
    torch.manual_seed(width)
    weight = torch.randn(61, width).to(kept)
    weight[7] = 0.0
    for index in (sampled(61, 60), None):
        rows = (weight if index is None else weight[index]).double().requires_grad_()
        grad = torch.randn(rows.shape[0], width)
        torch.nn.functional.normalize(rows, eps=kernels.NORM_EPS).backward(grad.double())
        grad[rows.detach().abs().sum(1) == 0] = 0.0  # divided by 1e-12, it would be all that is seen
        expected = torch.where(rows.detach().abs().sum(1, keepdim=True) > 0, rows.grad, 0.0)
        assert relative(kernels.project_rows_(grad, weight, index), expected) < 2e-6


def test_a_row_of_zeros_has_a_gradient():
    grad = kernels.project_rows_(torch.full((2, 40), 1e-12), torch.stack([torch.zeros(40), torch.ones(40)]))
    assert torch.allclose(grad[0], torch.ones(40))
    assert grad[1].abs().max() < 1e-15  # along the row: nothing is left


def test_rows_that_keep_their_length():
    weight = torch.randn(9, 40)
    unit, inverse = kernels.gather_normalize_round(weight, torch.tensor([1, 3, 8]), torch.float32, normalize=False)
    assert torch.equal(unit, weight[[1, 3, 8]])
    assert torch.equal(inverse, torch.ones(3))


@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (33, 300), (5, 2049)])
@pytest.mark.parametrize("positives", [1, 3])
@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_exponentials_leave_targets_and_padding_out(shape, positives, dtype):
    batch, columns = shape
    torch.manual_seed(columns)
    scores = torch.randn(shape)
    targets = torch.randint(-1, columns, (batch, positives))
    offsets = torch.randn(columns)
    offsets[columns // 2 + 1 :: 7] = -torch.inf
    for given in (offsets, None):
        out = torch.full(shape, torch.nan, dtype=dtype)
        sums = kernels.exponentials_(scores, out, 3.0, 4.0, targets, given)
        expected = torch.empty(shape, dtype=torch.float64)
        OPERATIONS["exponentials_"].twin(scores.double(), expected, 3.0, 4.0, targets, given, 0)
        assert ((out.double() - expected).abs() <= (ROUNDING[dtype] + 2e-6) * expected + 2.0**-25).all()
        assert torch.allclose(sums.double(), out.double().sum(1), rtol=1e-6, atol=0)
        assert (out.gather(1, targets.clamp(min=0))[targets >= 0] == 0).all()
        if given is not None:
            assert (out[:, offsets == -torch.inf] == 0).all()


def test_exponentials_take_the_place_of_scores():
    scores = torch.randn(6, 90).half()
    before = scores.clone()
    kept = scores.view(torch.bfloat16)
    targets = torch.full((6, 1), -1)
    sums = kernels.exponentials_(scores, kept, 2.0, 1.0, targets)
    expected = torch.exp(2.0 * before.double() - 1.0)
    assert relative(kept, expected) < ROUNDING[torch.bfloat16]
    assert torch.allclose(sums.double(), kept.double().sum(1), rtol=1e-6)


def test_sums_do_not_depend_on_the_run():
    scores, targets = torch.randn(3, 3000), torch.zeros(3, 1, dtype=torch.int64)
    out = torch.empty(3, 3000, dtype=torch.bfloat16)
    with counted_launches() as names:
        first = kernels.exponentials_(scores, out, 8.0, 8.0, targets)
    assert names == ["exponentials", "sum"]
    assert torch.equal(first, kernels.exponentials_(scores, out, 8.0, 8.0, targets))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("normalize", [True, False])
def test_cosines_and_gradients_of_targets(width, normalize):
    torch.manual_seed(width)
    batch, positives, count = (21 if width < 500 else 9), 3, 50
    x = torch.nn.functional.normalize(torch.randn(batch, width))
    weight, index = torch.randn(80, width), sampled(80, count)
    targets = torch.randint(-1, count, (batch, positives))
    targets[2:7] = 7  # many entries of one center, some of them in one row
    targets[8] = -1
    grad = torch.randn(batch, positives)
    for rows in (index, None):
        cosines = kernels.target_cosines(x, weight, rows, targets, normalize)
        exact = OPERATIONS["target_cosines"].twin(x.double(), weight.double(), rows, targets, normalize)
        assert ((cosines - exact).abs() <= 2e-6 * max(1.0, float(exact.abs().max()))).all()
        assert (cosines[targets < 0] == 0).all()
        found = torch.randn(batch, width), torch.randn(count if rows is not None else 80, width)
        expected = found[0].double(), found[1].double()
        kernels.target_gradients_(x, weight, rows, targets, grad, *found, normalize)
        OPERATIONS["target_gradients_"].twin(
            x.double(), weight.double(), rows, targets, grad.double(), *expected, normalize, 0, None
        )
        for one, other in zip(found, expected, strict=True):
            assert relative(one, other) < 1e-6


def test_gradients_of_the_operations_are_those_of_autograd():
    torch.manual_seed(0)
    weight = torch.randn(30, 48, dtype=torch.float32, requires_grad=True)
    x = torch.nn.functional.normalize(torch.randn(8, 48)).requires_grad_()
    index, targets = sampled(30, 12), torch.randint(-1, 12, (8, 2))
    direction = torch.randn(12, 48)
    unit, _ = kernels.gather_normalize_round(weight, index, torch.float32)
    value = (unit * direction).sum() + (kernels.target_cosines(x, weight, index, targets) ** 2).sum()
    found = torch.autograd.grad(value, (weight, x))
    wide, wide_x = weight.detach().double().requires_grad_(), x.detach().double().requires_grad_()
    rows = torch.nn.functional.normalize(wide)[index]
    cosines = torch.where(targets >= 0, (rows[targets.clamp(min=0)] * wide_x[:, None]).sum(2), 0.0)
    expected = torch.autograd.grad((rows * direction).sum() + (cosines**2).sum(), (wide, wide_x))
    for one, other in zip(found, expected, strict=True):
        assert relative(one, other) < 1e-6


def test_equal_targets_of_a_large_batch_are_sorted(monkeypatch):
    torch.manual_seed(0)
    targets = torch.randint(-1, 9, (50, 3))
    with counted_launches() as names:
        compared = kernels.link_equal(targets)
    assert names == ["link_equal"]
    monkeypatch.setattr(calls, "MOST_COMPARED", 149)
    with counted_launches() as names:
        assert torch.equal(kernels.link_equal(targets), compared)
    assert names == ["sort"]


# --- beyond 2^31 numbers ----------------------------------------------------------------------------------------------


def test_rows_beyond_the_reach_of_32_bits():
    width, far = 512, (1 << 31) // 512 + 3
    weight = zero_pages((far + 1, width), dtype=torch.bfloat16, device="cpu")
    weight[far] = torch.randn(width)
    weight[far - 5] = torch.randn(width)
    index = torch.tensor([0, far - 5, far])
    unit, _ = kernels.gather_normalize_round(weight, index, torch.float32)
    assert torch.allclose(unit[1:], torch.nn.functional.normalize(weight[index[1:]].float()), atol=1e-6)
    x = torch.nn.functional.normalize(torch.randn(2, width))
    cosines = kernels.target_cosines(x, weight, None, torch.tensor([[far], [far - 5]]))
    assert torch.allclose(cosines[:, 0], (x * unit[[2, 1]]).sum(1), atol=1e-6)
    grad = zero_pages((far + 1, width), dtype=torch.bfloat16, device="cpu")
    kernels.target_gradients_(x, weight, None, torch.tensor([[far], [-1]]), torch.ones(2, 1), None, grad)
    assert torch.allclose(grad[far].float(), x[0], atol=2.0**-8)


def test_scores_beyond_the_reach_of_32_bits():
    pages = zero_pages(((1 << 31) + 100,), dtype=torch.float16, device="cpu")
    scores = pages.as_strided((3, 40), (1 << 30, 1))
    scores[2] = torch.arange(40.0) / 40
    out = zero_pages(((1 << 31) + 100,), dtype=torch.bfloat16, device="cpu").as_strided((3, 40), (1 << 30, 1))
    sums = kernels.exponentials_(scores, out, 1.0, 0.0, torch.tensor([[-1], [-1], [39]]))
    assert torch.allclose(sums[0], torch.tensor(40.0))
    assert torch.allclose(out[2, :39].float(), torch.exp(torch.arange(39.0) / 40), rtol=2.0**-7)
    assert out[2, 39] == 0
