"""The errors of products in each precision: within the bound that is stated, and not a hundred times below it.

Against float64, on the sums of the softmax and on their gradients.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_pfc import PartialFC, losses
from lightning_pfc.heads.softmax import SampledRows, SoftmaxSpec, sharded_softmax
from lightning_pfc.heads.softmax.precision import ARITHMETIC, error_bounds

WORDS = list(ARITHMETIC)
SCALE = 64.0


def planted(name: str, dim: int = 64, batch: int = 24, classes: int = 3000) -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows, centers and targets (B, 1)."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(classes, dim, generator=generator)
    targets = torch.randint(0, classes, (batch,), generator=generator)
    noise = torch.randn(batch, dim, generator=generator)
    if name == "start":
        x = noise
    elif name == "learned":  # cosine 0.99, and a negative at 0.7
        x = F.normalize(weight[targets]) + 0.14 * F.normalize(noise)
        weight[(targets + 1) % classes] = F.normalize(weight[targets]) + F.normalize(torch.roll(noise, 1, 0))
    elif name == "duplicates":
        targets[:] = targets[0]
        x = 0.5 * weight[targets] + noise
    elif name == "no targets here":
        targets[:] = -1
        x = noise
    else:
        assert name == "last row"
        targets[:] = classes - 1
        x = F.normalize(weight[-1:]) + 0.5 * F.normalize(noise)
    return F.normalize(x), weight, targets[:, None]


def sums_and_gradients(
    x: Tensor, weight: Tensor, targets: Tensor, precision: Any, dtype: torch.dtype, **limits: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-sum-exp (B,), cosines (B, 1), and the gradients of the sum of the former."""
    x, weight = x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
    spec = SoftmaxSpec(scale=SCALE, logit_bound=SCALE, precision=precision, **limits)
    rows = SampledRows(None, torch.tensor(len(weight)))
    sums = sharded_softmax(x, weight, None, targets, rows, spec)
    of_x, of_weight = torch.autograd.grad(sums.negative_logsumexp.sum(), [x, weight])
    return sums.negative_logsumexp.detach(), sums.target_cosine.detach(), of_x, of_weight


@pytest.mark.parametrize("name", ["start", "learned", "duplicates", "no targets here", "last row"])
@pytest.mark.parametrize("word", WORDS)
def test_errors_are_those_stated(word: Any, name: str) -> None:
    x, weight, targets = planted(name)
    check(word, x, weight, targets)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("classes", [10_000, 1_000_000])
def test_sums_do_not_drift_with_the_classes(word: Any, classes: int) -> None:
    x, weight, targets = planted("start", dim=16, batch=3, classes=classes)
    check(word, x, weight, targets)


def check(word: Any, x: Tensor, weight: Tensor, targets: Tensor) -> None:
    lse, cosine, x_grad, w_grad = sums_and_gradients(x, weight, targets, word, torch.float32)
    # the twin: dense, in float64, from the formulas
    x, units = x.double().requires_grad_(), F.normalize(weight.double()).requires_grad_()
    every = x @ units.t()
    own = torch.where(targets >= 0, every.gather(1, targets.clamp(min=0)), 0.0)
    one_hot = torch.zeros_like(every).scatter_(1, targets.clamp(min=0), 1.0) * (targets >= 0)
    logits = (SCALE * every).masked_fill(one_hot.bool(), -torch.inf)
    wanted = logits.logsumexp(1)
    wanted_x, unit_grad = torch.autograd.grad(wanted.sum(), [x, units])
    units, norms = units.detach(), weight.double().norm(dim=1, keepdim=True)
    wanted_w = (unit_grad - units * (units * unit_grad).sum(1, keepdim=True)) / norms

    probabilities = logits.detach().softmax(1)
    bounds = error_bounds(word, SCALE, x.shape[1], len(units), probabilities.square().sum(1))
    assert (cosine - own).abs().max() <= 1e-6, "the target's own cosine is float32's in every precision"
    measured = ((lse - wanted).abs() / bounds.logsumexp).max()
    assert 0.01 <= measured <= 1.0, f"log-sum-exp: {measured:.3g} of the bound"
    means = wanted_x.norm(dim=1) / SCALE
    measured = ((x_grad - wanted_x).norm(dim=1) / bounds.x_grad(means)).max()
    assert 0.01 <= measured <= 1.0, f"gradient of the embeddings: {measured:.3g} of the bound"
    allowed = bounds.center_grad(unit_grad.norm()) / norms.min()
    measured = (w_grad - wanted_w).norm() / allowed
    assert 0.001 <= measured <= 1.0, f"gradient of the centers: {measured:.3g} of the bound"


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("loss", [losses.CosFace(), losses.CurricularFace(), losses.SubCenterArcFace()], ids=str)
def test_the_gradient_of_what_is_learned_well(word: Any, loss: Any) -> None:
    """At p = 1 - 1e-6 and beyond p - 1 is 0 in half precision; here the direction of the gradient stays."""
    torch.manual_seed(0)
    weight = torch.randn(500, 32)
    labels = torch.arange(20)
    x = F.normalize(weight[labels]) + 0.1 * F.normalize(torch.randn(20, 32))
    found = []
    for precision, dtype in (("float32", torch.float64), (word, torch.float32)):
        head = PartialFC(embedding_dim=32, num_classes=500, loss=loss, precision=precision, dtype=dtype).to("cpu")
        head.weight.data.copy_(weight.repeat(1, head.loss.num_centers))
        leaf = x.to(dtype).requires_grad_()
        value = head(leaf, labels)
        value.backward()
        assert leaf.grad is not None
        assert head.weight.grad is not None
        found.append([value.detach().double(), leaf.grad.double(), head.weight.grad[labels].double()])
    assert 0 < found[0][0] < 0.1
    for exact, rounded in zip(*(part[1:] for part in found), strict=True):
        assert exact.norm(dim=1).min() < 0.01 * exact.norm(dim=1).max(), "some rows are learned far better than others"
        assert F.cosine_similarity(exact, rounded, dim=1, eps=1e-300).min() > 0.99
        torch.testing.assert_close(rounded.norm(dim=1), exact.norm(dim=1), rtol=0.25, atol=0.0)


@pytest.mark.parametrize("word", WORDS)
def test_rows_far_from_all_classes(word: Any) -> None:
    """The fused exponentials flush to 0 there, and the pass is taken again."""
    weight = F.normalize(torch.ones(300, 16) + 0.01 * torch.randn(300, 16))
    x = F.normalize(torch.cat([-weight[:3], weight[3:6]]))
    targets = torch.tensor([[0], [1], [-1], [3], [4], [5]])
    lse, _, x_grad, _ = sums_and_gradients(x, weight, targets, word, torch.float32)
    wanted, _, wanted_x, _ = sums_and_gradients(x, weight, targets, "float32", torch.float64)
    assert (lse - wanted).abs().max() <= 2 * SCALE * ARITHMETIC[word].unit_roundoff + 1e-5 * SCALE
    assert F.cosine_similarity(x_grad.double(), wanted_x, dim=1).min() > 0.999


@pytest.mark.parametrize("word", WORDS)
def test_nobody_but_the_target(word: Any) -> None:
    """A rank without any negative: no NaN, no gradient."""
    x, weight = F.normalize(torch.randn(3, 8)), torch.randn(1, 8)
    lse, _, x_grad, w_grad = sums_and_gradients(x, weight, torch.zeros(3, 1, dtype=torch.int64), word, torch.float32)
    assert (lse < -1e29).all()
    assert not x_grad.any()
    assert not w_grad.any()


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``recipes/benchmarks/head/errors.py``, as it is run."""
    folder = Path(__file__).parents[2] / "recipes" / "benchmarks" / "head"
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module("errors")
    sys.modules.pop("errors")


def test_the_table_of_errors_is_of_the_precisions_asked_for(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --table-only too, where the words of runs to come say nothing."""
    head = PartialFC(embedding_dim=8, num_classes=20, loss="cosface").to("cpu")
    x, labels = torch.randn(6, 8), torch.arange(6)

    def train(*words: str) -> None:
        given = dict(word.lstrip("+").split("=", 1) for word in words)
        asked = given["callbacks.errors_of_run.precisions"].strip("'")
        watch = recipe.ErrorsOfRun(given["callbacks.errors_of_run.file"], asked)
        found = {when: recipe.errors_by_precision(head, x, labels, watch.words) for when in recipe.WHEN}
        watch.file.write_text(json.dumps(found))

    monkeypatch.setattr(recipe, "train", train)
    words = ["errors.py", "--precision", "bfloat16,float16x3", "--table-only", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    recipe.main()
    rows = [line.split(" | ")[0].strip("| ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert rows == ["precision", "---", *["bfloat16"] * 3, *["float16x3"] * 3]
