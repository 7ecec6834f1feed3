"""Backbones that go to CVLface, LVFace and MXNet and come back: what they compute, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_pfc.commands.ckpt import main
from lightning_pfc.interchange.mxnet_arrays import read_mxnet, write_mxnet
from lightning_pfc.models.backbone import create_backbone
from tests.unit.test_interchange import CLASSES, DIM, weights
from tests.unit.test_interchange_peers import given, refused_export, taken

SMALL_VIT = {"embed_dim": 512, "depth": 12, "patch_size": 8, "mlp_ratio": 5}


@torch.no_grad()
def seen(net: nn.Module) -> nn.Module:
    """With batch norms as if it had been trained, but for a first shortcut that does nothing."""
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and name != "layer1.0.downsample.1":
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval()


def iresnet(name: str = "iresnet18", side: int = 112) -> nn.Module:
    net: Any = create_backbone(name, input_size=(3, side, side))
    with torch.no_grad():
        net.layer1[0].downsample[0].weight.copy_(torch.eye(64)[:, :, None, None])
        net.layer1[0].downsample[1].running_var.fill_(1 - 1e-5)
    return seen(net)


def saved(net: nn.Module, path: Path) -> Path:
    state = {f"backbone.{key}": value for key, value in net.state_dict().items()}
    save_file(state | {"head.weight": weights()}, path)
    return path


def loaded(found: dict[str, Tensor], net: nn.Module) -> nn.Module:
    net.load_state_dict({k.removeprefix("backbone."): v for k, v in found.items() if k.startswith("backbone.")})
    return net.eval()


@torch.no_grad()
@pytest.mark.parametrize(("name", "theirs"), [("iresnet18", "iresnet/ir18"), ("face_vit_small", "vit/small")])
def test_cvlface_there_and_back_computes_the_same(
    name: str, theirs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    options = SMALL_VIT if "vit" in name else {}
    net = seen(create_backbone(name, options=options)) if options else iresnet()
    given("cvlface", saved(net, tmp_path / "ours.safetensors"), tmp_path / "theirs", "--ranks", "2")
    assert f"the backbone as {theirs}" in capsys.readouterr().out
    config = yaml.safe_load((tmp_path / "theirs" / "model.yaml").read_text())
    assert f"/{config['yaml_path'].split('/')[1]}/" in config["yaml_path"]
    assert (config["color_space"], config["output_dim"], config["name"]) == ("RGB", 512, theirs.split("/")[1])
    written = torch.load(tmp_path / "theirs" / "model.pt", weights_only=True)
    assert all(key.startswith("net.") for key in written)
    assert "net.mask_token" not in written
    found = taken("cvlface", tmp_path / "theirs", tmp_path / "again.safetensors", "--classes", str(CLASSES))
    assert torch.equal(found["head.weight"], weights())
    images = torch.rand(2, 3, 112, 112) * 2 - 1
    again = loaded(found, create_backbone(name, options=options))
    assert torch.equal(again(images), net(images))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("iresnet34", {}, "CVLface has ir18, ir50 and ir101"),
        ("iresnet18", {}, "layer1.0.downsample.0.weight is a layer of the first shortcut"),
        ("face_vit_tiny", {}, "CVLface's have width 512, patches of 8"),
    ],
)
def test_what_no_network_of_cvlface_computes_is_refused(
    name: str, options: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(create_backbone(name, options=options), tmp_path / "ours.safetensors")
    told = refused_export("cvlface", path, tmp_path, capsys)
    assert said in told
    assert "Take --to insightface" in told


def test_attention_heads_are_compared_where_they_are_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The shapes of CVLface's base do not tell that it has 16 heads; a checkpoint's own words do."""
    from lightning_pfc.checkpoint.single import OWN
    from lightning_pfc.checkpoint.single import save_file as save_checkpoint

    net = create_backbone("face_vit_base", options={"patch_size": 8, "mlp_ratio": 3, "embedding_dim": 8, "depth": 24})
    state = {f"backbone.{key}": value for key, value in net.state_dict().items()} | {"head.weight": weights()}
    for options, fine in (({}, False), ({"num_heads": 16}, True)):
        content = {"state_dict": state, "epoch": 0, "global_step": 1, OWN: {"by_class": ["state_dict/head.weight"]}}
        words = {"backbone": "face_vit_base", "backbone_options": options}
        path = tmp_path / f"{fine}.ckpt"
        save_checkpoint(path, {**content, "hyper_parameters": words})
        if fine:
            given("cvlface", path, tmp_path / "theirs")
        else:
            assert "8 attention heads, and CVLface's base 16" in refused_export("cvlface", path, tmp_path, capsys)


def test_backbones_that_cvlface_has_not_are_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(nn.Linear(3, DIM), tmp_path / "ours.safetensors")
    given("cvlface", path, tmp_path / "theirs")
    assert "left out: the backbone (2 tensors), which is neither an IResNet nor a FaceViT" in capsys.readouterr().out
    assert [each.name for each in (tmp_path / "theirs").iterdir()] == ["classifier_rank0.pt"]


def test_lvface_is_a_face_vit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = create_backbone("face_vit_tiny", input_size=(3, 36, 36))
    given("lvface", saved(net, tmp_path / "ours.safetensors"), tmp_path / "theirs.pt")
    assert "left out: the head (11 classes)" in capsys.readouterr().out
    found = taken("lvface", tmp_path / "theirs.pt", tmp_path / "again.safetensors")
    assert all(torch.equal(found[f"backbone.{key}"], value) for key, value in net.state_dict().items())
    path = saved(nn.Linear(3, DIM), tmp_path / "linear.safetensors")
    assert "should have a FaceViT as backbone" in refused_export("lvface", path, tmp_path, capsys)


def named_by_mxnet(net: nn.Module) -> dict[str, Tensor]:
    """The arrays of an LResNet, from a network of ours that computes as theirs does."""
    names = {"conv1": "conv0", "bn1": "bn0", "prelu": "relu0", "bn2": "bn1", "fc": "pre_fc1", "features": "fc1"}
    inside = {"prelu": "relu1", "downsample.0": "conv1sc", "downsample.1": "sc"}
    found: dict[str, Tensor] = {}
    for part, module in net.named_modules():
        stage, _, rest = part.partition(".")
        unit, _, inner = rest.partition(".")
        place = f"stage{stage[5:]}_unit{int(unit) + 1}_{inside.get(inner, inner)}" if inner else names.get(part, "")
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            found |= {f"arg:{place}_gamma": module.weight, f"arg:{place}_beta": module.bias}
            found |= {f"aux:{place}_moving_mean": module.running_mean, f"aux:{place}_moving_var": module.running_var}
        elif isinstance(module, nn.PReLU):
            found[f"arg:{place}_gamma"] = module.weight
        elif isinstance(module, nn.Conv2d | nn.Linear):
            found[f"arg:{place}_weight"] = module.weight
            if module.bias is not None:
                found[f"arg:{place}_bias"] = module.bias
    return {name: tensor.detach() for name, tensor in found.items()}


@torch.no_grad()
def test_networks_of_mxnet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Theirs takes (pixel - 127.5) / 128 and adds 2e-5 to variances; gamma of the last batch norm counts as 1."""
    torch.manual_seed(0)
    net = seen(create_backbone("iresnet18", input_size=(3, 32, 32)))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eps = 2e-5
            module.running_var.mul_(0.01)
    arrays = named_by_mxnet(net)
    arrays["arg:fc1_gamma"] = torch.full((512,), 7.0)
    write_mxnet(tmp_path / "model-0001.params", {**arrays, "arg:fc7_weight": weights()})
    found = taken("mxnet", tmp_path / "model-0001.params", tmp_path / "ours.safetensors")
    assert torch.equal(found["head.weight"], weights())
    pixels = torch.randint(0, 256, (4, 3, 32, 32)).float()
    expected = net((pixels - 127.5) * 0.0078125)
    ours = loaded(found, create_backbone("iresnet18", input_size=(3, 32, 32)))
    torch.testing.assert_close(ours(pixels / 127.5 - 1), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    given("mxnet", tmp_path / "ours.safetensors", tmp_path / "theirs", "--ranks", "2")
    back = read_mxnet(tmp_path / "theirs" / "model-0000.params")
    assert back.keys() == arrays.keys()
    assert bool((back.pop("arg:fc1_gamma") == 1).all())
    for name, array in back.items():
        torch.testing.assert_close(array, arrays[name], rtol=1e-6, atol=1e-9)
    again = taken("mxnet", tmp_path / "theirs", tmp_path / "again.safetensors", "--classes", str(CLASSES))
    assert again.keys() == found.keys()
    state = load_file(tmp_path / "ours.safetensors")
    state["backbone.layer2.0.bn1.running_var"][3] = 0
    save_file(state, tmp_path / "dead.safetensors")
    told = refused_export("mxnet", tmp_path / "dead.safetensors", tmp_path, capsys)
    assert "layer2.0.bn1.running_var has numbers below 1e-05" in told


def test_networks_of_mxnet_of_another_kind_are_left_out_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = named_by_mxnet(create_backbone("iresnet18", input_size=(3, 32, 32)))
    arrays["arg:stage1_unit1_se_conv1_weight"] = torch.zeros(3)
    write_mxnet(tmp_path / "se.params", arrays)
    assert main(["import", "--from", "mxnet", str(tmp_path / "se.params"), str(tmp_path / "out.safetensors")]) == 2
    assert "or an LResNet of version 3 with output E" in capsys.readouterr().err
    write_mxnet(tmp_path / "head.params", {**arrays, "arg:fc7_weight": weights(), "arg:fc7_bias": torch.zeros(CLASSES)})
    assert taken("mxnet", tmp_path / "head.params", tmp_path / "head.safetensors").keys() == {"head.weight"}
    said = capsys.readouterr().out
    assert "of a network that this package has not" in said
    assert "left out: fc7_bias" in said
