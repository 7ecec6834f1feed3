"""The head on one process, against the dense twin."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_pfc import PartialFC
from lightning_pfc.distributed.class_rows import class_rows
from lightning_pfc.distributed.collectives import gather_batch
from lightning_pfc.losses import (
    ArcFace,
    CombinedMargin,
    CosFace,
    Loss,
    NormFace,
    Softmax,
    SphereFace,
    SubCenterArcFace,
)
from tests.reference import dense_loss

LOSSES = [
    ArcFace(scale=32.0),
    ArcFace(scale=64.0, margin_grad="straight_through"),
    ArcFace(scale=96.0),  # beyond the fixed reference: the running maximum
    CosFace(scale=64.0, margin=0.4),
    SphereFace(scale=30.0),
    CombinedMargin(scale=48.0, m1=1.1, m2=0.2, m3=0.15),
    CombinedMargin(scale=48.0, m1=1.1, m2=0.2, m3=0.15, margin_grad="straight_through"),
    NormFace(scale=16.0),
    NormFace(scale=16.0, label_smoothing=0.1),
    ArcFace(scale=32.0, label_smoothing=0.2, interclass_filter=0.1),
    ArcFace(scale=32.0, interclass_filter=-0.05),
    Softmax(),
    Softmax(bias=True),
    Softmax(bias=True, label_smoothing=0.1),
]


def run_both(head, x, labels, classes=None):
    """Loss and gradients of head and twin."""
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    weight = head.weight.detach().clone().requires_grad_()
    bias = None if head.bias is None else head.bias.detach().clone().requires_grad_()
    value = head(x1, labels)
    value.backward()
    twin = dense_loss(x2, weight, labels, head.loss, bias, classes)
    twin.backward()
    got = [value.detach(), x1.grad, head.weight.grad] + ([] if bias is None else [head.bias.grad])
    want = [twin.detach(), x2.grad, weight.grad] + ([] if bias is None else [bias.grad])
    return got, want


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("budget", [0, 1 << 10, 512 << 20])
def test_equals_the_dense_twin(loss, budget):
    head = PartialFC(embedding_dim=12, num_classes=53, loss=loss, memory_budget=budget, chunk_size=9).double()
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    torch.manual_seed(1)
    head.weight.data.normal_()
    x, labels = torch.randn(17, 12, dtype=torch.float64), torch.randint(0, 53, (17,))
    for got, want in zip(*run_both(head, x, labels), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 20),
    classes=st.integers(1, 60),
    dim=st.integers(1, 9),
    chunk=st.integers(1, 70),
    rate=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    loss=st.sampled_from(LOSSES),
    seed=st.integers(0, 2**40),
)
def test_any_shape_rate_and_chunk(batch, classes, dim, chunk, rate, loss, seed):
    head = PartialFC(
        embedding_dim=dim,
        num_classes=classes,
        loss=loss,
        chunk_size=chunk,
        sample_rate=rate,
        seed=seed,
        memory_budget=2000,
    ).double()
    generator = torch.Generator().manual_seed(seed % 1000)
    x = torch.randn(batch, dim, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, classes, (batch,), generator=generator)
    sampled = head._sample(labels, labels) if rate < 1 else None
    classes_used = None if sampled is None else sampled.index
    for got, want in zip(*run_both(head, x, labels, classes_used), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)


def test_float32_agrees_with_float64_where_it_matters():
    torch.manual_seed(0)
    head = PartialFC(embedding_dim=64, num_classes=5000, loss=ArcFace(), seed=3).float()
    x, labels = torch.randn(32, 64), torch.randint(0, 5000, (32,))
    head(x, labels)
    twin = dense_loss(x.double(), head.weight.detach().double(), labels, head.loss)
    torch.testing.assert_close(head(x, labels).double(), twin, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [64.0, 100.0])
def test_confident_rows_keep_their_small_loss_and_gradient(scale):
    """Where the probability of the target rounds to one, loss and gradient are tiny, not zero."""
    head = PartialFC(embedding_dim=8, num_classes=8, loss=NormFace(scale=scale))
    head.to("cpu")
    with torch.no_grad():
        head.weight.copy_(torch.eye(8))
    x = torch.eye(8).requires_grad_()
    value = head(x, torch.arange(8))
    value.backward()
    expected = 7 * torch.exp(torch.tensor(-scale, dtype=torch.float64))
    torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=0)
    assert head.weight.grad.abs().max() > 0


def test_opposite_cosines_do_not_underflow():
    """All negatives at cosine -1 and the target worse still: the loss is right, not zero."""
    head = PartialFC(embedding_dim=2, num_classes=2, loss=CosFace(scale=64.0, margin=0.4))
    head.to("cpu")
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[-1.0, 0.0], [-1.0, 0.0]]))
    value = head(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    torch.testing.assert_close(value, torch.tensor(64 * 0.4), rtol=1e-5, atol=0)


def test_one_class_costs_nothing_and_yields_no_nan():
    head = PartialFC(embedding_dim=3, num_classes=1, loss=ArcFace())
    x = torch.randn(4, 3, requires_grad=True)
    value = head(x, torch.zeros(4, dtype=torch.int64))
    value.backward()
    assert value == 0
    assert x.grad.abs().sum() == 0
    assert head.weight.grad.isfinite().all()


def test_arguments_are_never_changed():
    head = PartialFC(embedding_dim=4, num_classes=9, loss=ArcFace(), sample_rate=0.3)
    x, labels = torch.randn(1, 4), torch.tensor([8])
    before = x.clone(), labels.clone()
    head(x, labels)
    assert torch.equal(x, before[0])
    assert torch.equal(labels, before[1])


def test_eval_uses_all_classes_and_draws_nothing():
    head = PartialFC(embedding_dim=4, num_classes=40, loss=NormFace(), sample_rate=0.1).double()
    x, labels = torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 1, 2])
    head.eval()
    torch.testing.assert_close(head(x, labels), dense_loss(x, head.weight, labels, head.loss))
    assert head.step == 0
    head.train()
    head(x, labels)
    assert head.step == 1


def test_weight_has_no_storage_until_needed_and_stays_the_same_object():
    head = PartialFC(embedding_dim=4, num_classes=10, loss=ArcFace(), seed=5)
    weight = head.weight
    assert weight.is_meta
    assert weight.shape == (10, 4)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    head(torch.randn(2, 4), torch.tensor([1, 2])).backward()
    assert head.weight is weight
    assert not weight.is_meta
    before = weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, head.weight)
    moved = PartialFC(embedding_dim=4, num_classes=10, loss=ArcFace(), seed=5).to("cpu")
    assert torch.equal(moved.weight, before)


def test_gradient_is_dense_unless_marked():
    head = PartialFC(embedding_dim=4, num_classes=30, loss=ArcFace(), sample_rate=0.2)
    head(torch.randn(2, 4), torch.tensor([1, 2])).backward()
    assert not head.weight.grad.is_sparse
    dense, head.weight.grad = head.weight.grad, None
    head.step.zero_()
    class_rows(head.weight).is_sparse = True
    torch.manual_seed(0)
    x = torch.randn(2, 4)
    head(x, torch.tensor([1, 2])).backward()
    assert head.weight.grad.is_sparse
    ids = head.weight.grad._indices()[0]
    assert ids.numel() == 6
    assert (ids.diff() > 0).all(), "ascending and distinct: nothing is left to coalesce"
    assert dense.shape == head.weight.shape


def test_the_earlier_attribute_asks_for_sparse_gradients(monkeypatch):
    monkeypatch.setattr("lightning_pfc.names.renamed._told", set())
    head = PartialFC(embedding_dim=4, num_classes=30, loss=ArcFace(), sample_rate=0.2)
    head.weight.row_sparse = True
    with pytest.warns(FutureWarning, match="param.row_sparse is called"):
        head(torch.randn(2, 4), torch.tensor([1, 2])).backward()
    assert head.weight.grad.is_sparse


def test_autocast_does_not_reach_the_head():
    head = PartialFC(embedding_dim=16, num_classes=100, loss=ArcFace())
    x, labels = torch.randn(8, 16), torch.randint(0, 100, (8,))
    plain = head(x, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(x, labels), plain)
    assert head(x.bfloat16(), labels).dtype == torch.float32


def test_copies_and_pickles():
    head = PartialFC(embedding_dim=4, num_classes=10, loss=ArcFace())
    for state in ("meta", "real"):
        if state == "real":
            head.to("cpu")
        for twin in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
            twin(torch.randn(2, 4), torch.tensor([0, 9]))
            assert twin.weight.shape == (10, 4)


def test_state_dict_round_trip_into_a_head_without_storage():
    head = PartialFC(embedding_dim=4, num_classes=10, loss=Softmax(bias=True), seed=1)
    head(torch.randn(2, 4), torch.tensor([0, 9]))
    other = PartialFC(embedding_dim=4, num_classes=10, loss=Softmax(bias=True), seed=2)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.weight, head.weight)
    assert other.step == 1


def test_target_ranks_match_a_sort():
    torch.manual_seed(0)
    head = PartialFC(embedding_dim=6, num_classes=50, loss=ArcFace(), chunk_size=7).to("cpu")
    head.weight.data.normal_()
    x, labels = torch.randn(20, 6), torch.randint(0, 50, (20,))
    rank, cosine = head.target_ranks(x, labels)
    scores = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(head.weight.detach()).t()
    own = scores.gather(1, labels[:, None])
    torch.testing.assert_close(cosine, own[:, 0])
    assert torch.equal(rank, (scores > own).sum(1))


@pytest.mark.parametrize(
    ("loss", "k"),
    [(ArcFace(), 5), (ArcFace(), 50), (ArcFace(), 99), (Softmax(bias=True), 3), (SubCenterArcFace(centers=3), 4)],
)
def test_top_classes_match_a_sort(loss: Loss, k: int) -> None:
    torch.manual_seed(0)
    head = PartialFC(embedding_dim=6, num_classes=50, loss=loss, chunk_size=7).to("cpu")
    head.weight.data.normal_()
    if head.bias is not None:
        head.bias.data.normal_()
    x = torch.randn(20, 6)
    centers = head.weight.detach().view(50, -1, 6)
    if loss.normalize:
        x, centers = torch.nn.functional.normalize(x), torch.nn.functional.normalize(centers, dim=2)
    scores = torch.einsum("bd,ckd->bck", x, centers).amax(2) + (0 if head.bias is None else head.bias.detach())
    score, label = head.top_classes(x, k)
    wanted = scores.topk(min(k, 50), dim=1)
    torch.testing.assert_close(score, wanted.values)
    assert torch.equal(label, wanted.indices)


def test_of_equal_classes_the_smaller_id_comes_first() -> None:
    head = PartialFC(embedding_dim=4, num_classes=9, loss=ArcFace(), chunk_size=2).to("cpu")
    head.weight.data[:] = torch.tensor([1.0, 0, 0, 0])
    assert head.top_classes(torch.randn(3, 4), 4).label.tolist() == [[0, 1, 2, 3]] * 3
    with pytest.raises(ValueError, match="k=0"):
        head.top_classes(torch.randn(3, 4), 0)


@pytest.mark.parametrize(
    ("x", "labels", "error", "words"),
    [
        (torch.randn(2, 4), torch.tensor([0, 10]), ValueError, "labels.*num_classes=10.*10"),
        (torch.randn(2, 4), torch.tensor([0, -1]), ValueError, "labels.*-1; leave rows without a class out"),
        (torch.randn(2, 4), torch.eye(10, dtype=torch.int64)[:2], ValueError, r"labels.*\(2, 10\).*multi-hot.*nonzero"),
        (torch.randn(2, 4), torch.eye(10)[:2], ValueError, "labels.*multi-hot"),
        (torch.randn(2, 4), torch.eye(10)[:2].bool(), ValueError, "labels.*multi-hot"),
        (torch.randn(2, 4), [0, 1], TypeError, "labels.*list.*must be a tensor"),
        (torch.randn(2, 4), torch.tensor([0.0, 1.0]), TypeError, "labels.*float32.*int64"),
        (torch.randn(2, 5), torch.tensor([0, 1]), ValueError, r"embeddings.*\(2, 5\).*embedding_dim=4"),
        (torch.randn(3, 4), torch.tensor([0, 1]), ValueError, "labels.*shape"),
        (torch.randint(0, 3, (2, 4)), torch.tensor([0, 1]), TypeError, "embeddings.*int64"),
        (torch.randn(2, 4).numpy(), torch.tensor([0, 1]), TypeError, r"embeddings is a ndarray; .*torch.as_tensor"),
        ([[1.0] * 4] * 2, torch.tensor([0, 1]), TypeError, "embeddings is a list"),
        (None, torch.tensor([0, 1]), TypeError, "embeddings is a NoneType"),
        (torch.tensor(1.0), torch.tensor([0]), ValueError, r"embeddings has shape \(\)"),
        (torch.full((2, 4), float("nan")), torch.tensor([0, 1]), FloatingPointError, "embeddings.*NaN"),
    ],
)
def test_bad_batches_say_what_is_wrong(x, labels, error, words):
    head = PartialFC(embedding_dim=4, num_classes=10, loss=ArcFace())
    with pytest.raises(error, match=words):
        head(x, labels)


@pytest.mark.parametrize("x", [np.zeros((2, 4), np.float32), [[1.0] * 4] * 2, None, torch.tensor(1.0)])
def test_what_is_no_batch_is_named_by_every_door(x):
    head, labels = PartialFC(embedding_dim=4, num_classes=10, loss=ArcFace()), torch.tensor([0, 1])
    doors = [head, head.loss_output, head.target_ranks, lambda x, _: head.top_classes(x, 2)]
    for door in doors:
        with pytest.raises((TypeError, ValueError), match=r"embeddings (is a|has shape)"):
            door(x, labels)
    with pytest.raises(ValueError, match=r"k=2\.5 must be a whole number"):
        head.top_classes(torch.randn(2, 4), 2.5)
    assert head.top_classes(torch.randn(2, 4), np.int64(3)).label.shape == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sample_rate": 1.5}, "sample_rate=1.5"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"embedding_dim": 0}, "embedding_dim=0"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"memory_budget": -1}, "memory_budget=-1"),
        ({"loss": "arcfce"}, "Did you mean ArcFace"),
    ],
)
def test_bad_arguments_say_what_is_wrong(arguments, words):
    with pytest.raises(ValueError, match=words):
        PartialFC(**{"embedding_dim": 4, "num_classes": 10, "loss": ArcFace()} | arguments)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ArcFace(margin=-0.1), "margin=-0.1"),
        (lambda: CosFace(scale=0.0), "scale=0.0"),
        (lambda: CosFace(scale=-3.0), "scale=-3.0"),
        (lambda: CombinedMargin(m3=-1.0), "m3=-1.0"),
        (lambda: ArcFace(margin_grad="none"), "margin_grad"),  # type: ignore[arg-type]
        (lambda: NormFace(label_smoothing=1.0), "label_smoothing=1.0"),
        (lambda: SphereFace(margin=0.5), "margin=0.5"),
        (lambda: Softmax(interclass_filter=0.4), "interclass_filter"),
        (lambda: ArcFace(scale=float("nan")), "scale=nan"),
    ],
)
def test_bad_losses_say_what_is_wrong(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    "loss", [ArcFace(scale=32.0), NormFace(label_smoothing=0.1), Softmax(bias=True), ArcFace(scale=99.0)]
)
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.6])
def test_the_padded_path_of_accelerators_gives_the_same_numbers(loss, rate, monkeypatch):
    import functools

    from lightning_pfc.heads import sampling
    from lightning_pfc.heads.sampling import Uniform, draw_kernel

    torch.manual_seed(0)
    sampler = Uniform(correction=not loss.needs_negative_sum)
    x, labels = torch.randn(9, 5, dtype=torch.float64), torch.randint(0, 61, (9,))
    results = []
    for static in (False, True):
        monkeypatch.setattr(
            draw_kernel, "sample_uniform", functools.partial(sampling.sample_uniform, static_shapes=static)
        )
        head = PartialFC(
            embedding_dim=5, num_classes=61, loss=loss, sample_rate=rate, chunk_size=7, sampler=sampler
        ).double()
        leaf = x.clone().requires_grad_()
        value = head(leaf, labels)
        value.backward()
        results.append((value, leaf.grad, head.weight.grad))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("rate", [0.3, 1.0])
@pytest.mark.parametrize("loss", [ArcFace(), Softmax(bias=True), ArcFace(interclass_filter=0.6)], ids=str)
def test_gradient_filter_keeps_its_tolerance(loss, rate):
    """On a head that fits its batch well, most classes are left out, and the gradients stay within the tolerance."""
    torch.manual_seed(0)
    results = []
    for tolerance in (0.0, 1e-3):
        head = PartialFC(embedding_dim=32, num_classes=600, loss=loss, sample_rate=rate, gradient_filter=tolerance)
        head.to("cpu")
        torch.manual_seed(1)
        head.weight.data.normal_()
        labels = torch.randint(0, 600, (16,))
        x = (head.weight.detach()[labels] + 0.2 * torch.randn(16, 32)).requires_grad_()
        value = head(x, labels)
        value.backward()
        results.append((value.detach(), x.grad, head.weight.grad, head.weight.grad.eq(0).all(1).sum()))
    exact, filtered = results
    torch.testing.assert_close(exact[0], filtered[0], rtol=1e-4, atol=0.0)  # other roundings: another engine
    for want, got in zip(exact[1:3], filtered[1:3], strict=True):
        assert (want - got).norm() <= 5e-3 * want.norm()
    assert filtered[3] > exact[3]
    assert filtered[3] < 600


@pytest.mark.parametrize("seed", ["x", 1.5, True, None])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(TypeError, match="seed="):
        PartialFC(embedding_dim=4, num_classes=9, loss=ArcFace(), seed=seed)


def test_labels_that_are_a_column_of_a_table_lie_as_gathered_ones_do() -> None:
    """One process gathers nothing, and kernels read labels as they lie."""
    table = torch.arange(24).view(4, 3, 2)
    for labels in (table[:, 0, 1], table[..., 1].t()[:, :2]):
        assert not labels.is_contiguous()
        x = torch.zeros(labels.shape[0], 2)
        found = gather_batch(x, labels, (labels.shape[0],), None, 1.0)[1]
        assert found.is_contiguous()
        assert torch.equal(found, labels)
