"""The head and the row-sparse optimizers together: in memory, in files, and inside the backward pass."""

from __future__ import annotations

import copy

import pytest
import torch

from lightning_pfc.heads import PartialFC
from lightning_pfc.losses import ArcFace, Softmax
from lightning_pfc.optim import RowWiseAdagrad, SparseAdamW, SparseSGD
from lightning_pfc.optim.rows import is_row_sparse
from lightning_pfc.storage.row_files import row_files

NUM_CLASSES, DIM, BATCH = 60, 8, 12
OPTIMIZERS = [
    pytest.param(SparseSGD, {"momentum": 0.9, "weight_decay": 1e-2}, id="sgd"),
    pytest.param(SparseAdamW, {"state_dtype": "int8"}, id="adamw-int8"),
    pytest.param(RowWiseAdagrad, {}, id="adagrad"),
]


def make_head(**options):
    options = {"loss": ArcFace(scale=8.0, margin=0.2), "sample_rate": 0.5, "chunk_size": 7, **options}
    return PartialFC(embedding_dim=DIM, num_classes=NUM_CLASSES, init_std=0.5, **options)


def train(head, optimizer, steps, micro_batches=1):
    """Losses of some steps; step i sees the same data in every run."""
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        for _ in range(micro_batches):
            labels = torch.randint(NUM_CLASSES, (BATCH,), generator=generator)
            embeddings = torch.randn(BATCH, DIM, generator=generator).requires_grad_()
            loss = head(embeddings, labels)
            (loss / micro_batches).backward()
            losses.append(loss.item())
            losses.append(embeddings.grad.square().sum().item())
        optimizer.step()
    return losses


@pytest.mark.parametrize(("optimizer_class", "options"), OPTIMIZERS)
@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_update_inside_the_backward_pass_is_the_same_update(optimizer_class, options, rate):
    heads = [make_head(sample_rate=rate), make_head(sample_rate=rate)]
    seen = []
    for head, in_backward in zip(heads, (False, True), strict=True):
        optimizer = optimizer_class(head.parameters(), lr=0.1, update_in_backward=in_backward, **options)
        seen.append(train(head, optimizer, range(4)))
        assert is_row_sparse(head.weight)
    assert seen[0] == seen[1]
    assert torch.equal(heads[0].weight, heads[1].weight)


def test_update_inside_the_backward_pass_keeps_the_bits_of_the_gradient():
    # Beside centers in bfloat16 autograd would hold a gradient in bfloat16; here the rule sees it in float32.
    dtypes = (torch.float32, torch.bfloat16, torch.bfloat16)
    full, half, inside = (make_head(dtype=dtype).to("cpu") for dtype in dtypes)
    with torch.no_grad():
        full.weight.copy_(half.weight)
    for head, in_backward in ((full, False), (half, False), (inside, True)):
        optimizer = SparseAdamW(head.parameters(), lr=1e-2, update_in_backward=in_backward)
        train(head, optimizer, range(1))
        head.mean = optimizer.state[head.weight]["exp_avg"]
    assert torch.equal(inside.mean, full.mean)
    assert not torch.equal(half.mean, full.mean)
    torch.testing.assert_close(half.mean, full.mean, rtol=1e-2, atol=1e-6)


def test_bias_follows_the_centers():
    heads = [make_head(loss=Softmax(bias=True)), make_head(loss=Softmax(bias=True))]
    for head, in_backward in zip(heads, (False, True), strict=True):
        optimizer = SparseSGD(head.parameters(), lr=0.1, momentum=0.9, update_in_backward=in_backward)
        train(head, optimizer, range(3))
    assert torch.equal(heads[0].bias, heads[1].bias)
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert heads[0].bias.any()


def test_accumulated_micro_batches_equal_one_dense_gradient():
    head, dense = make_head(), make_head()
    sparse_optimizer = SparseSGD(head.parameters(), lr=0.1)
    dense_optimizer = torch.optim.SGD(dense.parameters(), lr=0.1)
    assert train(head, sparse_optimizer, range(3), micro_batches=3) == pytest.approx(
        train(dense, dense_optimizer, range(3), micro_batches=3), rel=1e-5
    )
    assert head.weight.grad.is_sparse
    assert not dense.weight.grad.is_sparse
    torch.testing.assert_close(head.weight, dense.weight)


@pytest.mark.parametrize(("optimizer_class", "options"), OPTIMIZERS)
@pytest.mark.parametrize("in_backward", [False, True])
def test_head_in_files_is_the_head_in_memory(optimizer_class, options, in_backward, tmp_path):
    options = {**options, "lr": 0.1, "update_in_backward": in_backward}
    expected = make_head(dtype=torch.bfloat16)
    optimizer = optimizer_class(expected.parameters(), **options)
    losses = train(expected, optimizer, range(6))

    head = make_head(dtype=torch.bfloat16, row_folder=tmp_path)
    first = optimizer_class(head.parameters(), **options)
    assert train(head, first, range(3)) == losses[:6]
    row_files(head.weight).flush()
    row_files(head.weight).close()

    resumed = make_head(dtype=torch.bfloat16, row_folder=tmp_path, seed=1)
    resumed.seed = head.seed  # the centers come from the files, whatever the seed
    resumed.to("cpu")
    resumed.step.copy_(head.step)
    second = optimizer_class(resumed.parameters(), **options)
    second.allocate_state()
    second.state[resumed.weight]["step"].copy_(first.state[head.weight]["step"])
    assert train(resumed, second, range(3, 6)) == losses[6:]
    assert torch.equal(resumed.weight, expected.weight)
    for key in optimizer.state[expected.weight]:
        assert torch.equal(second.state[resumed.weight][key], optimizer.state[expected.weight][key])
    row_files(resumed.weight).close()
    assert {path.name for path in tmp_path.iterdir()} == {f"classes-0-{NUM_CLASSES}"}


def test_files_of_another_head_are_refused(tmp_path):
    make_head(row_folder=tmp_path).to("cpu")
    with pytest.raises(ValueError, match="another folder"):
        make_head(row_folder=tmp_path, dtype=torch.bfloat16).to("cpu")


def test_copies_of_a_head_get_row_sparse_gradients_too():
    head = copy.deepcopy(make_head().to("cpu"))
    optimizer = SparseSGD(head.parameters(), lr=0.1)
    train(head, optimizer, range(1))
    assert head.weight.grad.is_sparse
