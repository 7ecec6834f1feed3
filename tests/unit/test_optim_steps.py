"""The row-sparse optimizers against PyTorch's own and against their slow twins."""

from __future__ import annotations

import copy
import gc
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_pfc.distributed.class_rows import declare_class_rows
from lightning_pfc.distributed.shard import ClassShard
from lightning_pfc.optim import RowWiseAdagrad, SparseAdamW, SparseSGD, rows
from tests.unit.optim_reference import AdamWReference, RowWiseAdagradReference, SGDReference

SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-2, "nesterov": False}
CASES = [
    pytest.param(SparseSGD, SGDReference, SGD, id="sgd"),
    pytest.param(SparseSGD, SGDReference, {**SGD, "nesterov": True}, id="nesterov"),
    pytest.param(SparseSGD, SGDReference, {**SGD, "momentum": 0.0}, id="sgd-plain"),
    pytest.param(SparseSGD, SGDReference, {**SGD, "weight_decay": 0.0}, id="sgd-no-decay"),
    pytest.param(
        SparseAdamW,
        AdamWReference,
        {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1},
        id="adamw",
    ),
    pytest.param(
        SparseAdamW,
        AdamWReference,
        {"lr": 0.01, "betas": (0.8, 0.999), "eps": 1e-8, "weight_decay": 0.0},
        id="adamw-no-decay",
    ),
    pytest.param(
        SparseAdamW,
        AdamWReference,
        {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-8, "weight_decay": 0.1, "missed_steps": "decay"},
        id="adamw-missed",
    ),
    pytest.param(RowWiseAdagrad, RowWiseAdagradReference, {"lr": 0.1, "eps": 1e-10, "weight_decay": 0.0}, id="adagrad"),
    pytest.param(
        RowWiseAdagrad, RowWiseAdagradReference, {"lr": 0.1, "eps": 1e-3, "weight_decay": 0.1}, id="adagrad-decay"
    ),
]
TWINS = [
    pytest.param(SparseSGD, torch.optim.SGD, SGD, id="sgd"),
    pytest.param(SparseSGD, torch.optim.SGD, {**SGD, "nesterov": True}, id="nesterov"),
    pytest.param(SparseSGD, torch.optim.SGD, {**SGD, "momentum": 0.0, "weight_decay": 0.0}, id="sgd-plain"),
    pytest.param(SparseAdamW, torch.optim.AdamW, {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}, id="adamw"),
]


def centers(*shape, dtype=torch.float32, seed=0):
    """A parameter as a head owns it."""
    weight = nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype))
    declare_class_rows(weight, ClassShard(len(weight)))
    return weight


def sparse(index, values, shape, coalesced=True):
    return torch.sparse_coo_tensor(torch.as_tensor([index]), values, shape, is_coalesced=coalesced)


def random_gradients(shape, steps, seed=1):
    """Row numbers and values of a few steps; one step samples no row at all."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        count = 0 if step == 2 else int(torch.randint(1, shape[0] + 1, (), generator=generator))
        index = torch.randperm(shape[0], generator=generator)[:count].sort().values
        yield index, torch.randn(count, *shape[1:], generator=generator)


@pytest.mark.parametrize(("sparse_class", "reference_class", "options"), CASES)
def test_steps_equal_the_slow_twin(sparse_class, reference_class, options, monkeypatch):
    for shape in ((11, 6), (5,), (4, 2, 3)):
        for chunk in (3, 1000):
            monkeypatch.setattr(rows, "rows_per_chunk", lambda grad, chunk=chunk: chunk)
            compare_with_twin(sparse_class, reference_class, options, shape)


def compare_with_twin(sparse_class, reference_class, options, shape):
    weight = centers(*shape, dtype=torch.float64)
    reference = reference_class(weight, **options)
    optimizer = sparse_class([weight], **options)
    for index, values in random_gradients(shape, steps=6):
        weight.grad = sparse(index.tolist(), values.double(), shape)
        before = weight.detach().clone()
        optimizer.step()
        reference.step(dict(zip(index.tolist(), values, strict=True)))
        untouched = [row for row in range(shape[0]) if row not in index]
        assert torch.equal(weight[untouched], before[untouched])
    torch.testing.assert_close(weight.detach(), reference.weight, rtol=1e-12, atol=1e-14)


@settings(deadline=None, max_examples=60)
@given(
    case=st.sampled_from(CASES),
    num_rows=st.integers(1, 12),
    width=st.integers(1, 9),
    chunk=st.integers(1, 13),
    seed=st.integers(0, 1000),
    entries=st.lists(st.lists(st.integers(0, 11), max_size=15), min_size=1, max_size=4),
)
def test_gradients_of_several_backward_passes_add_up(case, num_rows, width, chunk, seed, entries):
    sparse_class, reference_class, options = case.values
    weight = centers(num_rows, width, dtype=torch.float64, seed=seed)
    reference = reference_class(weight, **options)
    optimizer = sparse_class([weight], **options)
    generator = torch.Generator().manual_seed(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "rows_per_chunk", lambda grad: chunk)
        for index in entries:
            index = [row % num_rows for row in index]
            values = torch.randn(len(index), width, generator=generator, dtype=torch.float64)
            weight.grad = sparse(index, values, weight.shape, coalesced=False)
            optimizer.step()
            total: dict[int, torch.Tensor] = {}
            for row, value in zip(index, values, strict=True):
                total[row] = total.get(row, 0) + value
            reference.step(total)
    torch.testing.assert_close(weight.detach(), reference.weight, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("sparse_class", "torch_class", "options"), TWINS)
@pytest.mark.parametrize("layout", ["dense", "all rows"])
def test_every_row_sampled_equals_torch_bit_for_bit(sparse_class, torch_class, options, layout):
    weight, twin = centers(40, 16), nn.Parameter(centers(40, 16).detach().clone())
    backbone, backbone_twin = nn.Linear(3, 2), nn.Linear(3, 2)
    backbone_twin.load_state_dict(backbone.state_dict())
    optimizer = sparse_class([weight, *backbone.parameters()], **options)
    torch_optimizer = torch_class([twin, *backbone_twin.parameters()], foreach=False, **options)
    for seed in range(5):
        grad = torch.randn(40, 16, generator=torch.Generator().manual_seed(seed))
        weight.grad = grad.clone() if layout == "dense" else sparse(range(40), grad.clone(), grad.shape)
        twin.grad = grad
        for module in (backbone, backbone_twin):
            module.zero_grad()
            module(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
        torch_optimizer.step()
        assert torch.equal(weight, twin)
        assert all(torch.equal(a, b) for a, b in zip(backbone.parameters(), backbone_twin.parameters(), strict=True))


@pytest.mark.parametrize("width", [10, 16, 48])
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_chunks_and_strides_change_no_bit(width, layout, monkeypatch):
    """Whatever a one-pass step does with a rest that fills no vector, or with rows that are not side by side."""
    found = []
    for chunk in (1, 3, 1000):
        monkeypatch.setattr(rows, "rows_per_chunk", lambda grad, chunk=chunk: chunk)
        weight = centers(40, width)
        optimizer = SparseSGD([weight], lr=0.1, momentum=0.9, weight_decay=5e-2)
        for seed in range(3):
            values = torch.randn(width, 40, generator=torch.Generator().manual_seed(seed)).t()
            weight.grad = values.contiguous() if layout == "contiguous" else values
            optimizer.step()
        found.append(weight.detach())
    twin = nn.Parameter(centers(40, width).detach().clone())
    torch_optimizer = torch.optim.SGD([twin], lr=0.1, momentum=0.9, weight_decay=5e-2, foreach=False)
    for seed in range(3):
        twin.grad = torch.randn(width, 40, generator=torch.Generator().manual_seed(seed)).t()
        torch_optimizer.step()
    assert all(torch.equal(one, twin) for one in found)


def test_dense_parameters_of_row_wise_adagrad_follow_torch():
    layer, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(layer.state_dict())
    optimizers = [
        RowWiseAdagrad(layer.parameters(), lr=0.1, weight_decay=0.1),
        torch.optim.Adagrad(twin.parameters(), lr=0.1, weight_decay=0.1, foreach=False),
    ]
    for _ in range(4):
        for module, optimizer in zip((layer, twin), optimizers, strict=True):
            optimizer.zero_grad()
            module(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), twin.parameters(), strict=True))


def test_row_wise_adagrad_keeps_one_number_per_row():
    weight = centers(10, 512)
    optimizer = RowWiseAdagrad([weight], lr=0.1)
    weight.grad = sparse([3], torch.ones(1, 512), weight.shape)
    optimizer.step()
    assert optimizer.state[weight]["row_sum"].shape == (10,)
    assert optimizer.state[weight]["row_sum"].nonzero().tolist() == [[3]]


@pytest.mark.parametrize(("sparse_class", "reference_class", "options"), CASES)
def test_the_gradient_is_left_as_it_is(sparse_class, reference_class, options):
    weight = centers(10, 4)
    optimizer = sparse_class([weight], **options)
    for values in (torch.randn(3, 4), torch.randn(3, 4)):
        kept = values.clone()
        weight.grad = sparse([1, 5, 9], values, weight.shape)
        optimizer.step()
        assert torch.equal(values, kept)


@pytest.mark.parametrize(("sparse_class", "reference_class", "options"), CASES)
def test_state_of_rows_that_are_not_sampled_is_untouched(sparse_class, reference_class, options):
    weight = centers(10, 4)
    optimizer = sparse_class([weight], **options)
    weight.grad = sparse(range(10), torch.randn(10, 4), weight.shape)
    optimizer.step()
    before = copy.deepcopy(optimizer.state[weight])
    weight.grad = sparse([2, 7], torch.randn(2, 4), weight.shape)
    optimizer.step()
    after = optimizer.state[weight]
    assert after["step"] == 2
    assert before.keys() - {"step"} <= optimizer.row_state_keys
    for key in before.keys() & optimizer.row_state_keys:
        changed = (before[key] != after[key]).reshape(10, -1).any(1)
        assert changed.nonzero().flatten().tolist() == [2, 7]


def test_only_parameters_of_heads_are_marked():
    weight, other = centers(4, 2), nn.Parameter(torch.zeros(4, 2))
    optimizer = SparseSGD([other], lr=0.1)
    assert not rows.is_row_sparse(weight)
    optimizer.add_param_group({"params": [weight], "name": "head"})
    assert rows.is_row_sparse(weight)
    assert not rows.is_row_sparse(other)


def test_a_parameter_is_marked_as_long_as_an_optimizer_holds_it():
    weight = centers(4, 2)
    first, second = SparseSGD([weight], lr=0.1), SparseSGD([weight], lr=0.1)
    second.load_state_dict(first.state_dict())  # marks again
    del first
    gc.collect()
    assert rows.is_row_sparse(weight)
    del second
    gc.collect()
    assert not rows.is_row_sparse(weight)


def test_storage_may_come_after_the_optimizer():
    weight = nn.Parameter(torch.empty(10, 4, device="meta"))
    declare_class_rows(weight, ClassShard(len(weight)))
    optimizer = SparseSGD([weight], lr=0.1, momentum=0.9)
    optimizer.allocate_state()  # nothing to allocate yet
    assert not optimizer.state
    shard = nn.Parameter(torch.ones(5, 4))
    declare_class_rows(shard, ClassShard(5)).is_sparse = True
    torch.utils.swap_tensors(weight, shard)
    weight.grad = sparse([4], torch.ones(1, 4), (5, 4))
    optimizer.step()
    assert weight[:, 0].tolist() == pytest.approx([1, 1, 1, 1, 0.9])
    assert optimizer.state[weight]["momentum_buffer"].shape == (5, 4)


def test_embedding_of_pytorch_works_unmarked():
    table = nn.Embedding(6, 3, sparse=True)
    before = table.weight.detach().clone()
    optimizer = SparseAdamW(table.parameters(), lr=0.1)
    table(torch.tensor([1, 1, 4])).sum().backward()
    optimizer.step()
    assert (table.weight != before).any(1).nonzero().flatten().tolist() == [1, 4]


@pytest.mark.parametrize(("sparse_class", "reference_class", "options"), CASES)
def test_resumed_run_is_the_same_run(sparse_class, reference_class, options):
    def run(optimizer, weight, layer, steps):
        for seed in steps:
            index, values = next(random_gradients(weight.shape, 1, seed))
            weight.grad = sparse(index.tolist(), values, weight.shape)
            layer.zero_grad()
            layer(torch.full((1, 3), float(seed))).square().sum().backward()
            optimizer.step()

    def make():
        torch.manual_seed(0)
        weight, layer = centers(9, 4), nn.Linear(3, 2)
        groups = [{"params": [weight], "name": "head", "lr": 0.05}, {"params": layer.parameters(), "name": "backbone"}]
        return weight, layer, sparse_class(groups, **options)

    weight, layer, optimizer = make()
    run(optimizer, weight, layer, range(6))

    first, first_layer, first_optimizer = make()
    run(first_optimizer, first, first_layer, range(3))
    file = io.BytesIO()
    torch.save([first_optimizer.state_dict(), first.detach(), first_layer.state_dict()], file)
    file.seek(0)
    state, saved, saved_layer = torch.load(file, weights_only=True)
    second, second_layer, second_optimizer = make()
    with torch.no_grad():
        second.copy_(saved)
    second_layer.load_state_dict(saved_layer)
    second_optimizer.load_state_dict(state)
    assert [group["name"] for group in second_optimizer.param_groups] == ["head", "backbone"]
    assert second_optimizer.param_groups[0]["lr"] == 0.05
    run(second_optimizer, second, second_layer, range(3, 6))
    assert torch.equal(second, weight)
    assert torch.equal(second_layer.weight, layer.weight)


@pytest.mark.parametrize(("sparse_class", "torch_class", "options"), TWINS)
def test_state_of_the_torch_optimizer_can_be_taken_over(sparse_class, torch_class, options):
    weight, twin = centers(9, 4), nn.Parameter(centers(9, 4).detach().clone())
    torch_optimizer = torch_class([twin], **options)
    twin.grad = torch.randn(9, 4)
    torch_optimizer.step()
    with torch.no_grad():
        weight.copy_(twin)
    optimizer = sparse_class([weight], **options)
    optimizer.load_state_dict(copy.deepcopy(torch_optimizer.state_dict()))  # loading shares tensors, as in torch
    twin.grad = torch.randn(9, 4)
    weight.grad = sparse(range(9), twin.grad, weight.shape)
    torch_optimizer.step()
    optimizer.step()
    assert torch.equal(weight, twin)


def test_state_of_rows_keeps_its_type_when_the_centers_have_fewer_bits():
    weight = centers(9, 4, dtype=torch.bfloat16)
    optimizer = SparseSGD([weight], lr=0.1, momentum=0.9)
    state = {"step": torch.tensor(3.0), "momentum_buffer": torch.full((9, 4), 1.001)}
    optimizer.load_state_dict({"state": {0: state}, "param_groups": optimizer.state_dict()["param_groups"]})
    assert optimizer.state[weight]["momentum_buffer"].dtype == torch.float32


def test_state_of_another_shard_is_refused():
    weight = centers(9, 4)
    optimizer = SparseSGD([weight], lr=0.1, momentum=0.9)
    weight.grad = torch.ones(9, 4)
    optimizer.step()
    other = SparseSGD([centers(8, 4)], lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match="9 rows, its parameter 8"):
        other.load_state_dict(optimizer.state_dict())


def test_allocated_state_is_that_of_a_first_step():
    weight, layer = centers(9, 4), nn.Linear(2, 2)
    optimizer = SparseAdamW([weight, *layer.parameters()])
    optimizer.allocate_state()
    state = optimizer.state_dict()["state"]
    assert {key: {k: v.shape for k, v in s.items()} for key, s in state.items()} == {
        0: {"step": (), "exp_avg": (9, 4), "exp_avg_sq": (9, 4)},
        1: {"step": (), "exp_avg": (2, 2), "exp_avg_sq": (2, 2)},
        2: {"step": (), "exp_avg": (2,), "exp_avg_sq": (2,)},
    }
    assert all(not value.any() for s in state.values() for value in s.values())


def test_schedulers_see_an_ordinary_optimizer():
    weight = centers(4, 2)
    optimizer = SparseSGD([{"params": [weight], "lr": 1.0}, {"params": [nn.Parameter(torch.zeros(2))]}], lr=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1**step)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.05])
    before = weight.detach().clone()
    weight.grad = sparse([0], torch.ones(1, 2), weight.shape)
    optimizer.step()
    torch.testing.assert_close(weight[0].detach(), before[0] - 0.1)


def test_closure_is_run_with_gradients():
    weight = centers(4, 2)
    optimizer = SparseSGD([weight], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(3)]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("coalesced", [True, False])
def test_loss_scaler_unscales_and_skips(coalesced):
    weight, layer = centers(6, 2), nn.Linear(2, 2)
    optimizer = SparseSGD([weight, *layer.parameters()], lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def step(value):
        optimizer.zero_grad()
        scaler.scale(layer(torch.ones(1, 2)).sum()).backward()
        weight.grad = sparse([1, 4], torch.full((2, 2), value * scaler.get_scale()), weight.shape, coalesced)
        before = weight.detach().clone(), layer.weight.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        return before

    before, _ = step(1.0)
    torch.testing.assert_close(weight[[1, 4]].detach(), before[[1, 4]] - 0.1)
    before, before_layer = step(torch.inf)
    assert torch.equal(weight, before)
    assert torch.equal(layer.weight, before_layer)
    assert scaler.get_scale() == 4.0


def test_copies_go_on_alike():
    weight = centers(6, 2)
    optimizer = SparseSGD([weight], lr=0.1, momentum=0.9)
    weight.grad = sparse([1, 4], torch.ones(2, 2), weight.shape)
    optimizer.step()
    twin = copy.deepcopy(optimizer)
    (other,) = twin.param_groups[0]["params"]
    assert other is not weight
    other.grad = weight.grad
    optimizer.step()
    twin.step()
    assert torch.equal(other, weight)


def test_bad_options_are_named():
    for sparse_class, options, message in [
        (SparseSGD, {"lr": -0.1}, "lr=-0.1"),
        (SparseSGD, {"lr": float("nan")}, "lr=nan"),
        (SparseSGD, {"momentum": -1}, "momentum=-1"),
        (SparseSGD, {"weight_decay": -1}, "weight_decay=-1"),
        (SparseSGD, {"nesterov": True}, "needs momentum"),
        (SparseAdamW, {"betas": (0.9, 1.0)}, "betas"),
        (SparseAdamW, {"missed_steps": "count"}, "missed_steps='count'"),
        (SparseAdamW, {"betas": (0.9,)}, "betas"),
        (SparseAdamW, {"eps": -1e-8}, "eps"),
        (RowWiseAdagrad, {"eps": -1e-8}, "eps"),
    ]:
        with pytest.raises(ValueError, match=message):
            sparse_class([centers(2, 2)], **options)
        with pytest.raises(ValueError, match=message):
            sparse_class([{"params": [centers(2, 2)], **options}])


def test_options_that_only_torch_has_are_refused():
    with pytest.raises(ValueError, match=r"dampening=0\.1"):
        SparseSGD([{"params": [centers(2, 2)], "dampening": 0.1}])
    amsgrad = torch.optim.AdamW([nn.Parameter(torch.zeros(2, 2))], amsgrad=True)
    with pytest.raises(ValueError, match="amsgrad"):
        SparseAdamW([nn.Parameter(torch.zeros(2, 2))]).load_state_dict(amsgrad.state_dict())


def test_moments_of_rows_that_missed_steps_are_those_of_the_dense_optimizer():
    shape, options = (12, 5), {"lr": 0.01, "betas": (0.8, 0.97), "weight_decay": 0.0}
    weight, twin = (centers(*shape, dtype=torch.float64) for _ in range(2))
    optimizer = SparseAdamW([weight], missed_steps="decay", **options)
    dense = torch.optim.AdamW([twin], **options)
    for index, values in random_gradients(shape, steps=9):
        weight.grad = sparse(index.tolist(), values.double(), shape)
        twin.grad = weight.grad.to_dense()
        optimizer.step()
        dense.step()
    state, expected = optimizer.state[weight], dense.state[twin]
    for row, last in enumerate(state["last_step"].long().tolist()):
        missed = 9 - last
        for key, beta in (("exp_avg", 0.8), ("exp_avg_sq", 0.97)):
            torch.testing.assert_close(state[key][row] * beta**missed, expected[key][row], rtol=1e-12, atol=0)
    assert len({*state["last_step"].tolist()}) > 1, "every row was in the last gradient: nothing was tested"


def test_state_of_a_run_that_did_not_count_missed_steps_goes_on():
    weight = centers(6, 3)
    before = SparseAdamW([weight], lr=0.01)
    weight.grad = sparse([1, 4], torch.ones(2, 3), (6, 3))
    before.step()
    after = SparseAdamW([weight], lr=0.01, missed_steps="decay")
    after.load_state_dict(before.state_dict())
    assert after.param_groups[0]["missed_steps"] == "skip", "a checkpoint decides over the options, as in torch"
    after.param_groups[0]["missed_steps"] = "decay"
    mean = before.state[weight]["exp_avg"][1].clone()
    weight.grad = sparse([1], torch.zeros(1, 3), (6, 3))
    after.step()
    torch.testing.assert_close(after.state[weight]["exp_avg"][1], 0.9 * mean)
    assert after.state[weight]["last_step"].tolist() == [0, 2, 0, 0, 0, 0]
