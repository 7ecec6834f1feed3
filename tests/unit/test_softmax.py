"""The softmax over classes by itself: several positives a row, against a dense matrix of logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_pfc.heads.softmax import SampledRows, SoftmaxSpec, SoftmaxSums, sharded_softmax
from lightning_pfc.heads.softmax.target_rank import rank_targets, target_cosines

BATCH, DIM, CLASSES = 9, 5, 23


def squared(cosine: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
    return 8.0 * cosine * (1.0 + cosine) + learned["shift"]


SPECS: dict[str, SoftmaxSpec] = {
    "linear": SoftmaxSpec(scale=16.0, logit_bound=16.0),
    "no bound": SoftmaxSpec(scale=16.0),
    "dot products": SoftmaxSpec(normalize=False, sums_logits=True),
    "curve": SoftmaxSpec(curve=squared, sums_logits=True),
    "softplus": SoftmaxSpec(curve=squared, sums_logits=True, softplus=True),
    "several centers": SoftmaxSpec(scale=16.0, logit_bound=16.0, centers_per_class=2),
}


def reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, rows: SampledRows, spec: SoftmaxSpec, shift: Tensor
) -> SoftmaxSums:
    centers = weight if rows.index is None else weight[rows.index]
    every = centers.view(-1, DIM)
    cosine = x @ (F.normalize(every) if spec.normalize else every).t()
    cosine = cosine.view(len(x), -1, spec.centers_per_class).amax(2)
    if bias is not None:
        cosine = cosine + (bias if rows.index is None else bias[rows.index])
    is_target = torch.zeros_like(cosine, dtype=torch.bool)
    found = torch.zeros(targets.shape, dtype=cosine.dtype)
    for i in range(len(x)):
        for p, column in enumerate(targets[i].tolist()):
            if column >= 0:
                is_target[i, column] = True
                found[i, p] = cosine[i, column]
    logits = spec.scale * cosine if spec.curve is None else spec.curve(cosine, {"shift": shift})
    addends = F.softplus(logits) if spec.softplus else logits
    offsets = rows.logit_offsets(x.dtype)
    if rows.valid is not None:
        addends = addends * rows.valid
    logits = (logits if offsets is None else logits + offsets).masked_fill(is_target, -torch.inf)
    return SoftmaxSums(logits.logsumexp(1), addends.masked_fill(is_target, 0.0).sum(1), found)


@pytest.mark.parametrize("limits", [{}, {"memory_budget": 0, "chunk_size": 4}, {"memory_budget": 700, "chunk_size": 7}])
@pytest.mark.parametrize("positives", [1, 3])
@pytest.mark.parametrize("sampled", [None, "some", "padded"])
@pytest.mark.parametrize("name", SPECS)
def test_equals_a_dense_matrix(name: str, sampled: str | None, positives: int, limits: dict[str, Any]) -> None:
    torch.manual_seed(3)
    spec = SoftmaxSpec(**{**vars(SPECS[name]), **limits})
    double: dict[str, Any] = {"dtype": torch.float64, "requires_grad": True}
    x = torch.randn(BATCH, DIM, dtype=torch.float64)
    x = (F.normalize(x) if spec.normalize else x).requires_grad_()
    weight = torch.randn(CLASSES, DIM * spec.centers_per_class, **double)
    bias = None if spec.normalize else torch.randn(CLASSES, **double)
    shift = torch.tensor(0.3, **double)
    rows = SampledRows(None, torch.tensor(CLASSES))
    if sampled is not None:
        index = torch.randperm(CLASSES)[:11].sort().values
        valid = None
        if sampled == "padded":
            index[-2:], valid = index[-3], torch.arange(11) < 9
        weights = None if spec.sums_logits else torch.rand(11, dtype=torch.float64)
        rows = SampledRows(index, torch.tensor(11), valid, weights)
    count = CLASSES if rows.index is None else 9
    targets = torch.stack([torch.randperm(count + 3)[:positives] - 3 for _ in range(BATCH)]).clamp(min=-1)

    leaves = [leaf for leaf in (x, weight, bias, shift if spec.curve else None) if leaf is not None]
    learned = {"shift": shift} if spec.curve else {}
    got = sharded_softmax(x, weight, bias, targets, rows, spec, learned)
    want = reference(x, weight, bias, targets, rows, spec, shift)
    values: list[list[Tensor]] = []
    for sums in (got, want):
        parts = [sums.negative_logsumexp, sums.target_cosine] + ([sums.negative_sum] if spec.sums_logits else [])
        loss = torch.stack(
            [(part * torch.linspace(0.5, 1.5, part.numel()).view(part.shape)).sum() for part in parts]
        ).sum()
        values.append([*(part.detach() for part in parts), *torch.autograd.grad(loss, leaves)])
    for mine, theirs in zip(*values, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
    cosine = target_cosines(x.detach(), weight, bias, targets, rows, spec)
    torch.testing.assert_close(cosine, want.target_cosine.detach(), rtol=1e-9, atol=1e-11)


def test_a_class_twice_among_the_positives() -> None:
    """It is no negative, and its gradients add up."""
    torch.manual_seed(0)
    x = F.normalize(torch.randn(2, DIM, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(CLASSES, DIM, dtype=torch.float64, requires_grad=True)
    targets, rows = torch.tensor([[4, 4], [-1, 2]]), SampledRows(None, torch.tensor(CLASSES))
    spec = SoftmaxSpec(scale=4.0, chunk_size=3)
    for run in (sharded_softmax, lambda *args: reference(*args, torch.tensor(0.0))):  # type: ignore[call-arg]
        sums = run(x, weight, None, targets, rows, spec)
        loss = sums.negative_logsumexp.sum() + (sums.target_cosine * torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum()
        grads = torch.autograd.grad(loss, [x, weight])
        if run is sharded_softmax:
            found = [loss.detach(), *grads]
    for mine, theirs in zip(found, [loss.detach(), *grads], strict=True):
        torch.testing.assert_close(mine, theirs)


def test_ranks_of_targets() -> None:
    torch.manual_seed(1)
    x, weight = F.normalize(torch.randn(BATCH, DIM)), torch.randn(CLASSES, DIM)
    targets = torch.randint(0, CLASSES, (BATCH, 1))
    found = rank_targets(x, weight, None, targets, SampledRows(None, torch.tensor(CLASSES)), SoftmaxSpec(chunk_size=4))
    cosine = x @ F.normalize(weight).t()
    own = cosine.gather(1, targets)
    assert torch.equal(found.rank, (cosine > own).sum(1))
    torch.testing.assert_close(found.cosine, own.squeeze(1))
