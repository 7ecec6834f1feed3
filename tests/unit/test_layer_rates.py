"""Rates by layer: those that timm gives, for every backbone of the package and some of timm's own."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from lightning_pfc import PartialFC
from lightning_pfc.models import layers_of
from lightning_pfc.optim.factory import create_optimizer

OURS = ["glyphnet", "iresnet18", "mobilefacenet", "face_vit_tiny"]
TIMMS = ["vit_tiny_patch16_224", "resnet18", "convnext_atto", "mobilenetv3_small_050"]


class Model(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.neck = backbone, nn.Linear(4, 4)
        self.head = PartialFC(embedding_dim=4, num_classes=9, loss="cosface")


@pytest.mark.parametrize("name", [*OURS, *TIMMS])
@pytest.mark.parametrize("plain_decay", [False, True])
def test_rates_are_those_of_timm(name: str, plain_decay: bool) -> None:
    with torch.device("meta"):
        backbone = timm.create_model(name, **({} if name in OURS else {"num_classes": 0}))
    layers = layers_of(backbone)
    assert set(layers.values()) == set(range(max(layers.values()) + 1))
    assert len(set(layers.values())) > 3
    theirs = {id(p): g["lr_scale"] for g in param_groups_layer_decay(backbone, layer_decay=0.7) for p in g["params"]}
    config = {"name": "sgd", "lr": 0.2, "weight_decay": 0.1, "backbone_lr_scale": 0.5, "layer_decay": 0.7,
              "head_lr_scale": 3.0, "no_decay_on_norm_and_bias": plain_decay}  # fmt: skip
    model = Model(backbone)
    optimizer = create_optimizer(model, config, row_sparse=False, layers=layers)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == sum(p.requires_grad for p in model.parameters())
    for param in backbone.parameters():
        if param.requires_grad:
            assert rates[id(param)] == pytest.approx(0.2 * 0.5 * theirs[id(param)])
    assert {rates[id(p)] for p in model.neck.parameters()} == {0.2}
    assert rates[id(model.head.weight)] == pytest.approx(0.6)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {decays[id(p)] for p in backbone.parameters() if p.requires_grad and p.dim() <= 1} == {
        0.0 if plain_decay else 0.1
    }
    names = [group["name"] for group in optimizer.param_groups]
    assert len(set(names)) == len(names)
    assert names[0].startswith("backbone_layer00")
    assert names[-1] == "head"


def test_one_rate_for_a_backbone_and_what_cannot_be_done() -> None:
    model = Model(nn.Linear(4, 4))
    optimizer = create_optimizer(model, {"name": "sgd", "lr": 0.2, "backbone_lr_scale": 0.1}, row_sparse=False)
    assert [(g["name"], g["lr"]) for g in optimizer.param_groups] == [
        ("backbone", pytest.approx(0.02)), ("neck", 0.2), ("head", 0.2)
    ]  # fmt: skip
    for config, said in (
        ({"layer_decay": 0.5}, r"layer_decay=0\.5 needs layers="),
        ({"layer_decay": -1.0}, r"layer_decay=-1\.0 is not allowed"),
        ({"backbone_lr_scale": -0.1}, r"backbone_lr_scale=-0\.1 is not allowed"),
    ):
        with pytest.raises(ValueError, match=said):
            create_optimizer(model, {"name": "sgd", "lr": 0.2, **config}, row_sparse=False)
    with pytest.raises(ValueError, match=r"speaks of module\.backbone, and Sequential has none"):
        create_optimizer(nn.Sequential(nn.Linear(2, 2)), {"name": "sgd", "lr": 1, "layer_decay": 0.5}, row_sparse=False)
    with pytest.raises(ValueError, match="Linear does not tell its layers"):
        layers_of(nn.Linear(2, 2))
    compiled = torch.compile(timm.create_model("glyphnet"))
    assert isinstance(compiled, nn.Module)
    assert {f"_orig_mod.{k}": v for k, v in layers_of(timm.create_model("glyphnet")).items()} == layers_of(compiled)
