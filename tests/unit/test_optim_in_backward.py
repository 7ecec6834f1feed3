"""Centers updated inside the backward pass equal those updated after it."""

from __future__ import annotations

import gc
import pickle

import pytest
import torch
from torch import nn

from lightning_pfc.distributed import Comm
from lightning_pfc.distributed.class_rows import declare_class_rows
from lightning_pfc.distributed.shard import ClassShard
from lightning_pfc.optim import RowWiseAdagrad, SparseAdamW, SparseSGD
from lightning_pfc.optim.base import updates_in_backward
from lightning_pfc.optim.row_update import row_update
from lightning_pfc.strategies.precision_plugins import ShardedPrecision

NUM_ROWS, WIDTH = 12, 5
OPTIMIZERS = [
    pytest.param(SparseSGD, {"momentum": 0.9, "weight_decay": 0.1}, id="sgd"),
    pytest.param(SparseAdamW, {"state_dtype": "int8"}, id="adamw-int8"),
    pytest.param(RowWiseAdagrad, {}, id="adagrad"),
]


def centers(dtype=torch.float32):
    weight = nn.Parameter(torch.randn(NUM_ROWS, WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype))
    declare_class_rows(weight, ClassShard(len(weight)))
    return weight


def backward(weight, index, values, chunk=4, weight_rows=False):
    """What a head does in its backward pass."""
    update = row_update(weight)
    if update is None:
        weight.grad = torch.sparse_coo_tensor(
            index[None], values.to(weight.dtype), weight.shape, is_coalesced=True, check_invariants=False
        )
        return
    update.begin(weight)
    for low in range(0, len(index), chunk):
        part = index[low : low + chunk]
        read = weight.detach()[part].float() if weight_rows else None
        update.apply(part, values[low : low + chunk], weight=read)
    update.end()


def gradients(steps=4):
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        index = torch.randperm(NUM_ROWS, generator=generator)[: 3 + step].sort().values
        # What bfloat16 holds, so that a gradient in the type of the centers loses nothing.
        yield index, torch.randn(len(index), WIDTH, generator=generator).bfloat16().float()


@pytest.mark.parametrize(("optimizer_class", "options"), OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_rows", [False, True])
def test_same_numbers_as_after_the_backward_pass(optimizer_class, options, dtype, weight_rows):
    weights = [centers(dtype), centers(dtype)]
    for weight, in_backward in zip(weights, (False, True), strict=True):
        optimizer = optimizer_class([weight], lr=0.1, update_in_backward=in_backward, **options)
        assert updates_in_backward(optimizer) == in_backward
        for index, values in gradients():
            optimizer.zero_grad()
            backward(weight, index, values, weight_rows=weight_rows)
            assert (weight.grad is None) == in_backward
            optimizer.step()
        assert optimizer.state[weight]["step"] == 4
    assert torch.equal(*weights)


@pytest.mark.parametrize("num_real", [0, 1, 4, 5, 7])
def test_padding_is_left_alone(num_real):
    # Padding repeats the last real row, as a head on a GPU makes it, in this chunk and in the next one.
    index = torch.tensor([1, 3, 4, 6, 8, 9, 11])
    index[num_real:] = index[num_real - 1] if num_real else 0
    values = torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(2))
    values[num_real:] = 0.0
    weight, expected = centers(), centers()
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    optimizer = SparseSGD([weight], update_in_backward=True, **options)
    reference = SparseSGD([expected], **options)
    backward(expected, index[:num_real], values[:num_real])
    reference.step()
    update = row_update(weight)
    update.begin(weight)
    for low, high in ((0, 4), (4, 7)):
        count = torch.tensor(num_real - low).clamp(0)
        read = weight.detach()[index[low:high]]
        update.apply(index[low:high], values[low:high], weight=read, num_real=count)
    optimizer.step()
    assert torch.equal(weight, expected)


def test_slices_are_updated_in_place():
    weight, expected = centers(), centers()
    optimizer = SparseSGD([weight], lr=0.1, update_in_backward=True)
    values = torch.randn(NUM_ROWS, WIDTH)
    update = row_update(weight)
    update.begin(weight)
    update.apply(slice(0, 7), values[:7], weight=weight.detach()[:7])
    update.apply(slice(7, NUM_ROWS), values[7:])
    optimizer.step()
    torch.testing.assert_close(weight, expected - 0.1 * values)


def test_second_backward_pass_is_refused():
    weight = centers()
    optimizer = SparseSGD([weight], lr=0.1, update_in_backward=True)
    index, values = next(gradients())
    backward(weight, index, values)
    with pytest.raises(RuntimeError, match="accumulate_grad_batches=1"):
        backward(weight, index, values)
    optimizer.zero_grad()  # a step that the user skips
    backward(weight, index, values)
    optimizer.step()
    backward(weight, index, values)


def test_loss_scaler_is_refused():
    weight, layer = centers(), nn.Linear(2, 2)
    optimizer = SparseSGD([weight, *layer.parameters()], lr=0.1, update_in_backward=True)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(layer(torch.ones(1, 2)).sum()).backward()
    before = layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match="loss scaler"):
        scaler.step(optimizer)
    assert torch.equal(layer.weight, before)


def test_only_a_living_optimizer_updates():
    weight = centers()
    optimizer = SparseSGD([weight], lr=0.1, update_in_backward=True)
    assert row_update(weight) is not None
    del optimizer
    gc.collect()
    assert row_update(weight) is None
    another = SparseSGD([weight], lr=0.1, update_in_backward=True)
    assert row_update(weight) is not None
    assert row_update(pickle.loads(pickle.dumps(weight))) is None
    SparseSGD([weight], lr=0.1)  # the last one made decides
    assert row_update(weight) is None
    assert updates_in_backward(another)


def test_parameter_may_get_its_storage_later():
    weight = nn.Parameter(torch.empty(NUM_ROWS, WIDTH, device="meta"))
    declare_class_rows(weight, ClassShard(len(weight)))
    optimizer = SparseSGD([weight], lr=0.1, update_in_backward=True)
    attributes = dict(vars(weight))
    torch.utils.swap_tensors(weight, nn.Parameter(torch.zeros(NUM_ROWS, WIDTH)))
    vars(weight).update(attributes)
    backward(weight, torch.tensor([3]), torch.ones(1, WIDTH))
    optimizer.step()
    assert weight.detach().sum() == pytest.approx(-0.1 * WIDTH)


def test_clipping_is_refused_where_it_would_come_too_late():
    optimizer = SparseSGD([centers()], lr=0.1, update_in_backward=True)
    plugin = ShardedPrecision()
    for clip in (plugin.clip_grad_by_norm, plugin.clip_grad_by_value):
        with pytest.raises(ValueError, match="update_in_backward=False"):
            clip(optimizer, 1.0)
    plugin.connect_shards((), Comm.single(), "backbone")
    plugin.clip_grad_by_norm(optimizer, 1.0)
