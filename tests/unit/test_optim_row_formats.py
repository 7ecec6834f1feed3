"""Rows in fewer bits: what is kept is right on average, the same on every rank, and near the full run."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_pfc.distributed.class_rows import declare_class_rows
from lightning_pfc.distributed.shard import ClassShard
from lightning_pfc.keyed_random.rounding_noise import RowNoise
from lightning_pfc.optim import RowWiseAdagrad, SparseAdamW, SparseSGD, rows
from lightning_pfc.optim.row_formats import HalfRows, SignedByteRows, SquareByteRows, stochastic_round_
from lightning_pfc.optim.row_step import RowStep
from lightning_pfc.optim.row_update import RowUpdate
from lightning_pfc.optim.rows import RowChunk

CPU = torch.device("cpu")


def centers(values, rank=0):
    weight = nn.Parameter(values.clone())
    declare_class_rows(weight, ClassShard(20, rank, 3))  # 7 rows each: rounding goes by the first one's class
    return weight


def noise_for(num_rows, width, step=1):
    return RowNoise(0, step, width, CPU).bits(torch.arange(num_rows), 0)


def test_noise_is_uniform_and_independent():
    bits = RowNoise(seed=3, step=5, width=64, device=CPU).bits(torch.arange(20_000), stream=0).double() / 65536
    assert (bits.min(), bits.max()) == (pytest.approx(0, abs=1e-4), pytest.approx(1, abs=1e-4))
    # 1.28 M numbers: a mean is within 4 sigma = 0.001 of a half; of one column within 0.0082.
    assert bits.mean() == pytest.approx(0.5, abs=1.1e-3)
    assert (bits.mean(0) - 0.5).abs().max() < 0.01
    assert bits.var() == pytest.approx(1 / 12, abs=1e-3)
    # Two columns differ by one of 256 numbers, that of the table's line: their correlation is within 5 / sqrt(256).
    assert torch.corrcoef(bits.t()).triu(1).abs().max() < 0.32
    other = RowNoise(seed=3, step=6, width=64, device=CPU).bits(torch.arange(20_000), stream=0).double() / 65536
    stream = RowNoise(seed=3, step=5, width=64, device=CPU).bits(torch.arange(20_000), stream=1).double() / 65536
    for another in (other, stream):
        assert abs(torch.corrcoef(torch.stack([bits.flatten(), another.flatten()]))[0, 1]) < 0.005


def test_noise_is_a_function_of_seed_step_row_and_stream():
    def bits(seed=2**40 + 1, step=7, rows_=(5, 9), stream=2):
        return RowNoise(seed, step, 16, CPU).bits(torch.tensor(rows_), stream)

    assert torch.equal(bits()[1:], bits(rows_=(9,)))
    for other in (bits(seed=1), bits(step=8), bits(stream=3), bits(rows_=(5 + 256, 9 + 256))):
        assert (other != bits()).float().mean() > 0.9


def test_rounding_is_to_a_neighbour_and_right_on_average():
    value = torch.tensor([1.0, 1.003, -3.14159, 1e-30, 65504.0, 0.0])
    rounded = stochastic_round_(value.repeat(40_000, 1), noise_for(40_000, 6))
    assert torch.equal(rounded.bfloat16().float(), rounded)
    assert (rounded.unique(dim=0).shape[0]) > 1
    step = value.abs() * 2**-7
    assert ((rounded - value).abs() <= step).all()
    assert torch.equal(rounded[:, [0, 5]], value[[0, 5]].expand(40_000, 2))  # what fits is not rounded
    # The error of one rounding is at most a step: that of the mean of 40,000 is within 5 sigma = step / 80.
    assert ((rounded.double().mean(0) - value).abs() <= step / 80).all()


def test_rounding_keeps_what_is_not_finite():
    values = torch.tensor([torch.inf, -torch.inf, torch.nan]).repeat(1000, 1)
    rounded = stochastic_round_(values.clone(), noise_for(1000, 3))
    torch.testing.assert_close(rounded, values, equal_nan=True)


@pytest.mark.parametrize("storage", [SignedByteRows(), SquareByteRows()])
def test_bytes_are_near_and_right_on_average(storage):
    torch.manual_seed(0)
    values = torch.randn(1, 32)
    values = values.square() if isinstance(storage, SquareByteRows) else values
    values[0, 0] = 0.0
    num = 5000
    tensors = {k: torch.zeros(s, dtype=d) for k, (s, d) in storage.layout("x", torch.Size((num, 32))).items()}
    assert sum(t.nbytes for t in tensors.values()) == num * (32 + 4)
    everything = slice(0, num)
    assert not storage.read("x", tensors, everything).any()
    storage.write("x", tensors, RowChunk(everything, values), values.repeat(num, 1), lambda: noise_for(num, 32))
    back = storage.read("x", tensors, everything)
    if isinstance(storage, SquareByteRows):
        assert (back > 0).all()
        back, values = back.sqrt(), values.sqrt()
        back, values = back[:, 1:], values[:, 1:]
    step = values.abs().max() / storage.levels
    assert ((back - values).abs() <= step * 1.001).all()
    assert ((back.double().mean(0) - values).abs() <= step / 25).all()


def test_rows_of_zeros_stay_zeros_in_bytes():
    for storage in (SignedByteRows(), SquareByteRows()):
        tensors = {k: torch.ones(s).to(d) for k, (s, d) in storage.layout("x", torch.Size((2, 4))).items()}
        chunk = RowChunk(torch.tensor([1]), torch.zeros(1, 4))
        storage.write("x", tensors, chunk, torch.zeros(1, 4), lambda: noise_for(1, 4))
        assert not storage.read("x", tensors, torch.tensor([1])).any()


def make(optimizer_class, weight, **options):
    return optimizer_class([weight], lr=0.05, **options)


OPTIMIZERS = [
    pytest.param(SparseSGD, {"momentum": 0.9, "weight_decay": 1e-2}, id="sgd"),
    pytest.param(SparseAdamW, {"weight_decay": 1e-2}, id="adamw"),
]


def train(weight, optimizer, steps=30, generator_seed=0):
    """Draws the rows to target rows, some rows at a time: a loss that ends near zero."""
    generator = torch.Generator().manual_seed(generator_seed)
    target = torch.randn(weight.shape, generator=generator)
    for _ in range(steps):
        index = torch.randperm(len(weight), generator=generator)[: len(weight) // 2].sort().values
        values = weight.detach()[index].float() - target[index]
        weight.grad = torch.sparse_coo_tensor(
            index[None], values.to(weight.dtype), weight.shape, is_coalesced=True, check_invariants=False
        )
        optimizer.step()
    return (weight.detach().float() - target).square().mean().item()


@pytest.mark.parametrize(("optimizer_class", "options"), OPTIMIZERS)
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fewer_bits_train_as_well(optimizer_class, options, state_dtype, dtype):
    start = torch.randn(64, 48, generator=torch.Generator().manual_seed(1))
    full = centers(start)
    expected = train(full, make(optimizer_class, full, **options), steps=60)
    weight = centers(start.to(dtype))
    optimizer = make(optimizer_class, weight, state_dtype=state_dtype, **options)
    loss = train(weight, optimizer, steps=60)
    assert weight.dtype == dtype
    assert loss == pytest.approx(expected, rel=0.1, abs=2e-3)
    if (dtype, state_dtype) == (torch.float32, "float32"):
        assert torch.equal(weight, full)
    sizes = {"float32": 4, "bfloat16": 2, "int8": 1}
    per_row = {k: v for k, v in optimizer.state[weight].items() if k in optimizer.row_state_keys}
    main = {k: v for k, v in per_row.items() if not k.endswith("_scale")}
    assert {v.element_size() for v in main.values()} == {sizes[state_dtype]}
    assert optimizer.state[weight].keys() - per_row.keys() == {"step"}
    assert all(len(v) == len(weight) for v in per_row.values())


def test_updates_far_below_a_bit_are_not_lost():
    # 1 - 1e-4 rounds back to 1 in bfloat16: to the nearest, nothing would ever move.
    weight = centers(torch.ones(500, 20, dtype=torch.bfloat16))
    optimizer = SparseSGD([weight], lr=1e-4)
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert weight.detach().float().mean() == pytest.approx(0.99, abs=5e-4)
    nearest = torch.ones(1, dtype=torch.bfloat16)
    assert nearest - 1e-4 == nearest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
def test_a_split_over_ranks_changes_nothing(dtype, state_dtype, monkeypatch):
    start = torch.randn(20, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    whole = centers(start)
    parts = [centers(start[:7]), centers(start[7:], rank=1)]
    options = {"lr": 0.1, "momentum": 0.9, "state_dtype": state_dtype, "rounding_seed": 11}
    optimizers = [SparseSGD([weight], **options) for weight in (whole, *parts)]
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        index = torch.randperm(20, generator=generator)[:9].sort().values
        values = torch.randn(9, 8, generator=generator).to(dtype)
        for weight, low, high in ((whole, 0, 20), (parts[0], 0, 7), (parts[1], 7, 20)):
            mine = (index >= low) & (index < high)
            weight.grad = torch.sparse_coo_tensor(
                index[mine][None] - low, values[mine], weight.shape, is_coalesced=True, check_invariants=False
            )
        for i, optimizer in enumerate(optimizers):
            monkeypatch.setattr(rows, "rows_per_chunk", lambda grad, i=i: 2 + i)
            optimizer.step()
    assert torch.equal(torch.cat([part.detach() for part in parts]), whole.detach())


@pytest.mark.parametrize("optimizer_class", [SparseSGD, SparseAdamW, RowWiseAdagrad])
def test_resumed_run_is_the_same_run_in_fewer_bits(optimizer_class):
    options = {} if optimizer_class is RowWiseAdagrad else {"state_dtype": "int8"}
    if optimizer_class is SparseSGD:
        options["momentum"] = 0.9
    start = torch.randn(20, 8).bfloat16()
    weight = centers(start)
    optimizer = make(optimizer_class, weight, **options)
    train(weight, optimizer, steps=3)
    other = centers(weight.detach())
    resumed = make(optimizer_class, other, **options)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(weight, optimizer, steps=3, generator_seed=1)
    train(other, resumed, steps=3, generator_seed=1)
    assert torch.equal(weight, other)


@pytest.mark.parametrize(("optimizer_class", "options"), OPTIMIZERS)
def test_state_is_converted_when_a_run_goes_on_in_another_type(optimizer_class, options):
    start = torch.randn(20, 8, generator=torch.Generator().manual_seed(1))
    weight = centers(start)
    optimizer = make(optimizer_class, weight, **options)
    train(weight, optimizer, steps=3)
    full = {k: v.clone() for k, v in optimizer.state[weight].items()}
    for state_dtype in ("int8", "bfloat16", "float32"):
        optimizer.param_groups[0]["state_dtype"] = state_dtype
        optimizer.allocate_state()
    assert optimizer.state[weight].keys() == full.keys()
    for key, value in full.items():
        assert optimizer.state[weight][key].dtype == value.dtype
        torch.testing.assert_close(optimizer.state[weight][key], value, rtol=0.05, atol=0.02 * value.max().item())


def test_types_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="state_dtype='int4'"):
        SparseSGD([centers(torch.zeros(2, 2))], momentum=0.9, state_dtype="int4")
    weight = centers(torch.zeros(2, 2, dtype=torch.float16))
    optimizer = SparseSGD([weight], lr=0.1)
    weight.grad = torch.ones_like(weight)
    with pytest.raises(ValueError, match=r"torch\.float16"):
        optimizer.step()


def test_half_rows_leave_others_alone():
    kept = torch.full((4, 2), 3.0, dtype=torch.bfloat16)
    chunk = RowChunk(torch.tensor([1, 3]), torch.zeros(2, 2), torch.tensor(False))
    HalfRows().write("x", {"x": kept}, chunk, torch.zeros(2, 2), lambda: noise_for(2, 2))
    assert (kept == 3).all()  # a chunk of nothing but padding
    HalfRows().write(
        "x", {"x": kept}, chunk._replace(live=torch.tensor(True)), torch.zeros(2, 2), lambda: noise_for(2, 2)
    )
    assert kept[:, 0].tolist() == [3, 0, 3, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "int8"])
def test_on_cuda_rows_are_updated_without_a_wait(dtype, state_dtype):
    # Fake tensors raise where a device is mixed with another, or a value would have to come to the host.
    with FakeTensorMode():
        weight = nn.Parameter(torch.empty(40, 6, dtype=dtype, device="cuda"))
        declare_class_rows(weight, ClassShard(len(weight)))
        optimizers = [
            SparseSGD([weight], momentum=0.9, weight_decay=0.1, nesterov=True, state_dtype=state_dtype),
            SparseAdamW([weight], state_dtype=state_dtype),
            RowWiseAdagrad([weight], weight_decay=0.1),
        ]
        for optimizer in optimizers:
            (group,) = optimizer.param_groups
            state = optimizer._ensure_row_state(weight, group)
            storages = {name: storage for name, (_, storage) in optimizer._row_state(weight, group).items()}
            noise = RowNoise(0, 3, 6, torch.device("cuda"))
            step = RowStep(optimizer, weight, state, storages, group)
            vars(step).update(step=3, noise=noise)
            index = torch.empty(10, dtype=torch.int64, device="cuda")
            live = torch.empty((), dtype=torch.bool, device="cuda")
            with torch.no_grad():
                step.apply(RowChunk(index, torch.empty(10, 6, device="cuda"), live))
                step.apply(RowChunk(slice(3, 9), torch.empty(6, 6, device="cuda")))
                update = RowUpdate(optimizer)
                update._step = step
                update.apply(
                    index,
                    torch.empty(10, 6, device="cuda"),
                    weight=torch.empty(10, 6, device="cuda"),
                    num_real=torch.empty((), dtype=torch.int64, device="cuda"),
                )
