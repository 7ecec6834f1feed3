"""The kernels of the row updates beside their twins: every rule, every way to keep rows, random bits bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_pfc.buffers.lazy_zeros import zero_pages
from lightning_pfc.keyed_random.rounding_noise import RowNoise
from lightning_pfc.optim.row_kernels import adagrad_rows_, adamw_rows_, sgd_rows_

SEED = [0x9ABCDEF0, 0x12345678]
STEP = 5
FIRST_ROW = 1000
STATES = ["float32", "bfloat16", "int8"]
WEIGHTS = [torch.float32, torch.bfloat16]


def state_of(word: str, rows: int, width: int, squares: bool = False) -> tuple[Tensor, Tensor | None]:
    """Rows of a state as it is kept, and scales."""
    if word == "int8":
        low, high, dtype = (1, 256, torch.uint8) if squares else (-127, 128, torch.int8)
        scales = torch.rand(rows)
        scales[3] = 0.0
        return torch.randint(low, high, (rows, width)).to(dtype), scales
    values = torch.randn(rows, width).to(getattr(torch, word))
    return (values.abs() if squares else values), None


def gradient(rows: int, width: int, sparse: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradient, row numbers and how many are real; zeros for a row, since a row of zeros has no scale."""
    count = 14 if sparse else rows
    index = torch.randperm(rows)[:count].sort().values if sparse else None
    grad = torch.randn(count, width)
    grad[2] = 0.0
    return grad, index, torch.tensor(count - 3) if sparse else None


def check(kernel, tensors: list[Tensor | None], *rest) -> None:
    """The kernel and its twin change the same tensors alike: floats to rounding, kept bytes and halves by one unit."""
    ours, twins = ([None if t is None else t.clone() for t in tensors] for _ in range(2))
    kernel(*ours, *rest)
    kernel.twin(*twins, *rest)
    for before, found, expected in zip(tensors, ours, twins, strict=True):
        if before is None:
            continue
        assert not torch.equal(before, found), "nothing was written"
        if found.dtype == torch.float32:
            assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
            continue
        # rounded at random by the same bits: only where the number before differs in its last place may they differ
        differ = found != expected
        assert differ.float().mean() < 2e-3
        unit = 1 if found.dtype in (torch.int8, torch.uint8) else 2.0**-7 * expected.abs().float()
        assert ((found.float() - expected.float()).abs() <= unit).all()


@pytest.mark.parametrize("word", STATES)
@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize(
    ("width", "sparse", "projects", "nesterov"), [(100, True, True, False), (64, False, False, True)]
)
def test_sgd(word, dtype, width, sparse, projects, nesterov):
    torch.manual_seed(0)
    weight, (velocity, scales) = torch.randn(30, width).to(dtype), state_of(word, 30, width)
    grad, index, count = gradient(30, width, sparse)
    options = torch.tensor([0.1, 0.9, 1e-2], dtype=torch.float64)
    common = (grad, index, count, options, torch.tensor(STEP), FIRST_ROW, SEED, sparse, not sparse)
    check(sgd_rows_, [weight, velocity, scales], *common)


@pytest.mark.parametrize("dtype", WEIGHTS)
def test_sgd_without_momentum(dtype):
    grad, index, count = gradient(30, 72, True)
    options = torch.tensor([0.1, 0.0, 0.0], dtype=torch.float64)
    common = (grad, index, count, options, torch.tensor(STEP), FIRST_ROW, SEED, True, False)
    check(sgd_rows_, [torch.randn(30, 72).to(dtype), None, None], *common)


@pytest.mark.parametrize("word", STATES)
@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize(("width", "sparse", "decays"), [(100, True, True), (64, False, False)])
def test_adamw(word, dtype, width, sparse, decays):
    torch.manual_seed(0)
    weight, mean, square = torch.randn(30, width).to(dtype), state_of(word, 30, width), state_of(word, 30, width, True)
    last = torch.randint(0, STEP, (30,)).float() if decays else None
    grad, index, count = gradient(30, width, sparse)
    options = torch.tensor([0.1, 0.01, 1e-8, 0.9, 0.999], dtype=torch.float64)
    common = (grad, index, count, options, torch.tensor(STEP), FIRST_ROW, SEED, sparse)
    check(adamw_rows_, [weight, *mean, *square, last], *common)


@pytest.mark.parametrize("betas", [(0.0, 0.999), (0.9, 0.0)])
def test_adamw_without_one_of_its_moments(betas):
    """Rows that missed no step, and those that missed some, decay by powers of 0: 1 and 0."""
    torch.manual_seed(0)
    weight, mean, square = torch.randn(30, 40), state_of("float32", 30, 40), state_of("float32", 30, 40, True)
    last = torch.randint(0, STEP, (30,)).float()
    assert {0.0, STEP - 1.0} <= set(last.tolist())
    grad, index, count = gradient(30, 40, False)
    options = torch.tensor([0.1, 0.01, 1e-8, *betas], dtype=torch.float64)
    common = (grad, index, count, options, torch.tensor(STEP), FIRST_ROW, SEED, False)
    check(adamw_rows_, [weight, *mean, *square, last], *common)


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize(("width", "sparse"), [(1024, True), (64, False)])
def test_adagrad(dtype, width, sparse):
    torch.manual_seed(0)
    grad, index, count = gradient(30, width, sparse)
    options = torch.tensor([0.1, 0.01, 1e-8], dtype=torch.float64)
    common = (grad, index, count, options, torch.tensor(STEP), FIRST_ROW, SEED, sparse)
    check(adagrad_rows_, [torch.randn(30, width).to(dtype), torch.rand(30)], *common)


def test_rows_that_are_not_sampled_stay_bit_for_bit():
    weight, velocity = torch.randn(30, 64).bfloat16(), torch.randn(30, 64)
    before = weight.clone(), velocity.clone()
    index, count = torch.tensor([3, 8, 20, 20, 20]), torch.tensor(3)
    options = torch.tensor([0.1, 0.9, 0.0], dtype=torch.float64)
    sgd_rows_(weight, velocity, None, torch.ones(5, 64), index, count, options, torch.tensor(1), 0, SEED, False, False)
    others = torch.ones(30, dtype=torch.bool)
    others[[3, 8, 20]] = False
    assert torch.equal(weight[others], before[0][others])
    assert torch.equal(velocity[others], before[1][others])
    assert (velocity[20] == 0.9 * before[1][20] + 1.0).all()  # padding repeats the row, and does nothing


@pytest.mark.parametrize("width", [1, 100, 512])
def test_random_bits_are_those_of_row_noise(width):
    from tests.interpreted.noise_kernel import write_bits

    rows = torch.tensor([0, 1, 99_999_999, 2**31 + 5])
    for step in (1, 2**33 + 7):
        noise = RowNoise(SEED[0] | SEED[1] << 32, step, width, torch.device("cpu"))
        for stream in (0, 2):
            out = torch.empty(4, width, dtype=torch.int32)
            padded = 1 << (width - 1).bit_length()
            write_bits[(2,)](rows, out, torch.tensor(step), *SEED, width, STREAM=stream, WIDTH=padded)
            assert torch.equal(out, noise.bits(rows, stream))


def test_rows_beyond_the_reach_of_32_bits():
    width, far = 512, (1 << 31) // 512 + 3
    weight = zero_pages((far + 1, width), dtype=torch.bfloat16, device="cpu")
    total = zero_pages((far + 1,), dtype=torch.float32, device="cpu")
    weight[far] = 1.0
    options = torch.tensor([0.5, 0.0, 1e-8], dtype=torch.float64)
    grad, index = torch.full((2, width), 4.0), torch.tensor([5, far])
    adagrad_rows_(weight, total, grad, index, None, options, torch.tensor(1), 0, SEED, False)
    assert total[far] == 16.0
    assert torch.allclose(weight[far].float(), torch.full((width,), 0.5), atol=2.0**-8)
    assert torch.allclose(weight[5].float(), torch.full((width,), -0.5), atol=2.0**-8)
    assert weight[4].abs().max() == 0
