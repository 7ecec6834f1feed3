"""What users add up over a head's rows: said where it is of one shard, silent where it is right."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, normalize, relu
from torch.nn.utils import parameters_to_vector
from torch.utils.checkpoint import checkpoint

from lightning_pfc import PartialFC
from lightning_pfc.optim.foreign import gradient
from lightning_pfc.strategies.loss_uses import LossUses, reduced_shards

Penalty = Callable[[nn.Module], Any]


class Model(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.backbone = nn.Linear(5, 6)
        self.head = PartialFC(embedding_dim=6, num_classes=9, **{"loss": "cosface", **options}).to("cpu")

    def loss(self) -> Tensor:
        return self.head(self.backbone(torch.randn(4, 5)), torch.arange(4))  # type: ignore[no-any-return]

    def shards(self) -> dict[str, Tensor]:
        return {f"head.{name}": value for name, value in self.head.named_parameters()}


def weight(model: nn.Module) -> Tensor:
    return cast("Any", model).head.weight  # type: ignore[no-any-return]


RIGHT: dict[str, Penalty] = {
    "nothing": lambda m: 0.0,
    "squares": lambda m: 0.1 * sum(p.pow(2).sum() for p in m.parameters()),
    "products": lambda m: sum((p * p).sum() for p in m.parameters()) / 3,
    "absolutes": lambda m: 0.1 * torch.stack([p.abs().sum() for p in m.parameters()]).sum(),
    "vector": lambda m: parameters_to_vector(m.parameters()).square().sum() * 2 - 1,
    "backbone": lambda m: cast("Any", m).backbone.weight.norm(),
    "by rows": lambda m: weight(m).pow(2).sum(1).sum(),
    "both dimensions": lambda m: weight(m).sum((0, 1)),
    "lengths": lambda m: weight(m).norm(dim=1).sum() + (weight(m).norm(dim=-1) - 1).pow(2).sum(),
    "elements": lambda m: relu(weight(m)).sum() + weight(m).exp().sum() + weight(m).T.pow(2).sum(),
    "a loss": lambda m: mse_loss(weight(m), torch.zeros_like(weight(m)), reduction="sum"),
    "dot": lambda m: weight(m).flatten().dot(weight(m).flatten()),
    "mean of totals": lambda m: torch.stack([p.pow(2).sum() for p in m.parameters()]).mean(),
}
REDUCED: dict[str, tuple[Penalty, str]] = {
    "lasso": (lambda m: sum(p.norm() for p in m.parameters()), "LinalgVectorNorm"),
    "root": (lambda m: sum(p.pow(2).sum().sqrt() for p in m.parameters()), "Sqrt"),
    "vector": (lambda m: parameters_to_vector(m.parameters()).norm(), "LinalgVectorNorm"),
    "mean": (lambda m: sum(p.pow(2).mean() for p in m.parameters()), "Mean"),
    "largest": (lambda m: cast("Any", m).head.weight.abs().max(), "Max"),
    "angles": (
        lambda m: (normalize(cast("Any", m).head.weight) @ normalize(cast("Any", m).head.weight).T).sum(),
        "ClampMin|Mm|LinalgVectorNorm|Expand|T",
    ),
    "mean of a loss": (lambda m: mse_loss(weight(m), torch.zeros_like(weight(m))), "MseLoss"),
    "lengths of columns": (lambda m: weight(m).norm(dim=0).sum(), "LinalgVectorNorm"),
    "mean of lengths": (lambda m: weight(m).norm(dim=1).mean(), "Mean"),
    "middle": (lambda m: cast("Any", m).head.weight.sum(0).pow(2).sum(), "Sum"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_sums_of_numbers_are_right(name: str) -> None:
    model = Model()
    assert list(reduced_shards(model.loss() + RIGHT[name](model), model.shards())) == []


@pytest.mark.parametrize("name", REDUCED)
def test_what_else_is_made_of_a_shard_is_found(name: str) -> None:
    penalty, operations = REDUCED[name]
    model = Model()
    [(parameter, operation)] = reduced_shards(model.loss() + penalty(model), model.shards())
    assert parameter == "head.weight"
    assert operation in operations.split("|")


@pytest.mark.parametrize(
    "loss", ["softmax", "adaface", "sphereface2", "uniface", "subcenter_arcface", "vpl", "adacos", "curricularface"]
)
def test_what_a_head_does_itself_is_not_meant(loss: str) -> None:
    for options in ({}, {"sample_rate": 0.5}, {"auxiliary_losses": ["supcon"]}):
        model = Model(loss=loss, **options)
        shards = {"head.weight": model.head.weight}
        assert list(reduced_shards(model.loss(), shards)) == []
        region = checkpoint(
            lambda x, m=model: m.head(m.backbone(x), torch.arange(4)), torch.randn(4, 5), use_reentrant=False
        )
        assert list(reduced_shards(region, shards)) == []


def test_it_is_said_once_with_the_name() -> None:
    model, uses = Model(), LossUses()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(4):
            uses.look({"loss": model.loss() + model.head.weight.norm()}, model.shards())
        uses.look(None, model.shards())
    [said] = [str(w.message) for w in caught]
    assert "LinalgVectorNorm of head.weight" in said
    assert "shard" in said


GRADIENTS: dict[str, Callable[[Tensor], Any]] = {
    "norm": lambda g: g.norm(),
    "flat": lambda g: g.flatten().norm(),
    "dot": lambda g: g.flatten() @ g.flatten(),
    "einsum": lambda g: torch.einsum("ij,ij->", g, g),
    "linalg": lambda g: torch.linalg.norm(g),
    "rows": lambda g: g.norm(dim=1).sum(),
    "double": lambda g: g.double().reshape(-1).pow(2).sum(),
    "joined": lambda g: torch.cat([torch.ones(3), g.reshape(-1)]).norm(),
    "largest": lambda g: g.detach().abs().amax(),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_number_of_a_gradient_is_of_the_shard(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient, "_told", set())
    with pytest.warns(UserWarning, match="of the gradient of a PartialFC head is taken over this rank's shard only"):
        GRADIENTS[name](gradient._marked(torch.randn(4, 3), cast("Any", None)))


def test_what_is_no_number_of_all_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient, "_told", set())
    marked = gradient._marked(torch.randn(4, 3), cast("Any", None))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert marked[1, 2] == marked.flatten()[5]
        assert not bool(torch.isnan(marked).any())
        assert marked.new_zeros(()) == 0
        assert isinstance(marked.norm(dim=1, keepdim=True), gradient.ShardGradient)
        marked.sub_(marked.mean(dim=1, keepdim=True)).mul_(0.5).clone().t()
