"""The gradient filter: what it leaves out is bounded, and what it keeps is what the matrix products give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_pfc import PartialFC, losses
from lightning_pfc.heads.sampling import Uniform
from lightning_pfc.heads.softmax import sparse_entries
from lightning_pfc.heads.softmax.gradient_filter import negligible_below
from lightning_pfc.heads.softmax.sparse_entries import SparseEntries, by_class, find_entries, sums_by_class
from lightning_pfc.optim import SparseSGD

CLASSES, DIM, BATCH = 600, 32, 16


@settings(deadline=None, max_examples=80)
@given(batch=st.integers(1, 9), width=st.integers(1, 11), share=st.floats(0, 1), seed=st.integers(0, 999))
def test_sums_over_single_slopes_are_the_matrix_products(batch: int, width: int, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(batch, width, dtype=torch.float64, generator=generator)
    matters = torch.rand(batch, width, generator=generator) < share
    dense = torch.where(matters, dense, 0.0)
    x, centers = (torch.randn(n, 5, dtype=torch.float64, generator=generator) for n in (batch, width))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_entries, "_WORTH_IT", 1.0)
        found = find_entries(matters)
    assert found is not None
    slopes = SparseEntries(*found, dense[found])
    torch.testing.assert_close(sparse_entries.times_centers(slopes, centers, batch), dense @ centers)
    ordered, starts = by_class(slopes)
    classes = ordered.columns[starts]
    assert classes.tolist() == matters.any(0).nonzero().squeeze(1).tolist()
    torch.testing.assert_close(sparse_entries.times_batch(ordered, starts, x), (dense.t() @ x)[classes])
    torch.testing.assert_close(sums_by_class(ordered.values, starts), dense.sum(0)[classes])


def test_many_places_are_not_worth_it() -> None:
    assert find_entries(torch.ones(4, 5, dtype=torch.bool)) is None


def test_what_is_left_out_is_no_more_than_the_tolerance() -> None:
    torch.manual_seed(0)
    slope = torch.rand(8, 50).pow(12)
    target = torch.rand(8)
    least = negligible_below(0.1, target, torch.tensor(50))
    left_out = torch.where(slope < least, slope, 0.0)
    assert 0 < left_out.norm() <= 0.1 * target.norm()


def gradients(head: PartialFC, labels: Tensor, x: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    head.step.zero_()
    head.zero_grad()
    value = head(leaf, labels)
    value.backward()
    assert leaf.grad is not None
    return [value.detach(), leaf.grad, *(p.grad.clone() for p in head.parameters() if p.grad is not None)]


LOSSES: list[Any] = [
    losses.ArcFace(),
    losses.Softmax(bias=True),
    losses.ArcFace(interclass_filter=0.6),
    losses.CurricularFace(),
    losses.SubCenterArcFace(),
    losses.NormFace(label_smoothing=0.1),
    losses.AdaFace(),
]


@pytest.mark.parametrize(
    "options", [{}, {"sample_rate": 0.3}, {"sample_rate": 0.3, "sampler": Uniform(correction=True)}]
)
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_the_gradients_stay_within_the_tolerance(loss: Any, options: dict[str, Any]) -> None:
    if options.get("sampler") and loss.needs_negative_sum:
        pytest.skip("label smoothing sums logits as they are, and weighed negatives are refused there")
    torch.manual_seed(0)
    head = PartialFC(embedding_dim=DIM, num_classes=CLASSES, loss=loss, chunk_size=130, init_std=1.0, **options)
    labels = torch.randint(0, CLASSES, (BATCH,))
    x = head.to("cpu").weight.detach()[labels, :DIM] + 0.2 * torch.randn(BATCH, DIM)
    state = {name: buffer.clone() for name, buffer in head.named_buffers()}
    results = []
    for tolerance in (0.0, 1e-3, 0.3):
        head.gradient_filter = tolerance
        head.load_state_dict({**head.state_dict(), **state})
        results.append(gradients(head, labels, x))
    exact, fine, coarse = results
    torch.testing.assert_close(exact[0], fine[0], rtol=1e-4, atol=1e-6)  # engines differ in rounding
    for want, got in zip(exact[1:3], fine[1:3], strict=True):
        assert (want - got).norm() <= 2e-3 * want.norm()
    assert (exact[1] - coarse[1]).norm() <= 0.6 * exact[1].norm()
    if not loss.needs_negative_sum:  # there every slope has a share of its own, and none is small
        assert not torch.equal(exact[2], coarse[2]), "nothing was left out: nothing was tested"


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_leaving_nothing_out_changes_nothing(loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sparse sums over all slopes against the products."""
    monkeypatch.setattr(sparse_entries, "_WORTH_IT", 1.0)
    head = PartialFC(
        embedding_dim=DIM, num_classes=90, loss=loss, chunk_size=40, init_std=1.0, sample_rate=0.7, dtype="float64"
    )
    labels = torch.randint(0, 90, (BATCH,))
    x = torch.randn(BATCH, DIM, dtype=torch.float64)
    state = {name: buffer.clone() for name, buffer in head.to("cpu").named_buffers()}
    results = []
    for tolerance in (0.0, 1e-300):
        head.gradient_filter = tolerance
        head.load_state_dict({**head.state_dict(), **state})
        results.append(gradients(head, labels, x))
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_centers_updated_in_the_backward_pass() -> None:
    weights = []
    for in_backward in (False, True):
        torch.manual_seed(0)
        head = PartialFC(
            embedding_dim=DIM, num_classes=CLASSES, loss=losses.ArcFace(), chunk_size=130, sample_rate=0.5,
            init_std=1.0, gradient_filter=1e-2,
        ).to("cpu")  # fmt: skip
        optimizer = SparseSGD(head.parameters(), lr=0.1, momentum=0.9, update_in_backward=in_backward)
        labels = torch.randint(0, CLASSES, (BATCH,))
        head(head.weight.detach()[labels].requires_grad_(), labels).backward()
        optimizer.step()
        weights.append(head.weight.detach().clone())
    assert torch.equal(*weights)
