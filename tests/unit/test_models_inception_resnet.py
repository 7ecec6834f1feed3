"""Inception-ResNet v1 behaves as the other face backbones do, from the size on that its layers need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import lightning_pfc.models  # noqa: F401  (registers the name)
from lightning_pfc.commands.ckpt import main as pfc_ckpt
from lightning_pfc.models import layers_of
from lightning_pfc.transfer import init_from

NAME, SIZE = "inception_resnet_v1", 75


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_sizes_channels_and_classes() -> None:
    model = timm.create_model(NAME, in_chans=1, embedding_dim=24, img_size=(80, SIZE), num_classes=7).eval()
    x = images(2, 1, 80, SIZE)
    assert model(x).shape == (2, 7)
    assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, 24)
    assert model(images(2, 1, SIZE, 90)).shape == (2, 7)
    with pytest.raises(ValueError, match=r"got images of shape \(2, 1, 80, 74\)"):
        model(images(2, 1, 80, 74))
    with pytest.raises(ValueError, match="img_size must be at least 75"):
        timm.create_model(NAME, img_size=74)


def test_feature_maps() -> None:
    model = timm.create_model(NAME, img_size=SIZE, features_only=True).eval()
    assert [tuple(each.shape[:2]) for each in model(images(1, 3, SIZE, SIZE))] == [(1, 256), (1, 896), (1, 1792)]


def test_checkpointed_activations_give_the_same_gradients() -> None:
    """And every parameter has one."""
    model = timm.create_model(NAME, img_size=SIZE).train()
    x, gradients = images(4, 3, SIZE, SIZE), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_embedding_layers_stay_out_of_autocast() -> None:
    model = timm.create_model(NAME, img_size=SIZE).eval()
    x = images(2, 3, SIZE, SIZE)
    plain = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(x)
    assert mixed.dtype == torch.float32
    assert torch.cosine_similarity(plain, mixed).min() > 0.99


def test_layers_are_counted_in_the_order_of_the_network() -> None:
    layers = layers_of(timm.create_model(NAME))
    blocks = [f"repeat_1.{i}" for i in range(5)] + ["mixed_6a"] + [f"repeat_2.{i}" for i in range(10)]
    blocks += ["mixed_7a"] + [f"repeat_3.{i}" for i in range(5)] + ["block8"]
    assert layers["conv2d_4b.conv.weight"] == 0
    assert [{layers[name] for name in layers if name.startswith(f"{each}.")} for each in blocks] == [
        {place} for place in range(1, len(blocks) + 1)
    ]


@torch.no_grad()
def test_begins_with_a_file_of_facenet_pytorch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Imported, taken by ``init_from``, and given back bit for bit."""
    theirs = timm.create_model(NAME).eval()
    state = theirs.state_dict() | {"logits.weight": torch.rand(5, 512), "logits.bias": torch.zeros(5)}
    torch.save(state, tmp_path / "theirs.pt")
    made = tmp_path / "ours.safetensors"
    assert pfc_ckpt(["import", "--from", "facenet-pytorch", str(tmp_path / "theirs.pt"), str(made)]) == 0
    assert "backbone=inception_resnet_v1" in capsys.readouterr().out
    assert torch.equal(load_file(made)["head.weight"], state["logits.weight"])
    module: Any = nn.Module()
    module.backbone = timm.create_model(NAME).eval()
    init_from(module, str(made), parts=["backbone"])
    x = images(1, 3, SIZE, SIZE)
    assert torch.equal(module.backbone(x), theirs(x))
    assert pfc_ckpt(["export", "--to", "facenet-pytorch", str(made), str(tmp_path / "again.pt")]) == 0
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], value) for name, value in state.items())
