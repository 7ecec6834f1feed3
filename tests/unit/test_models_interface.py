"""The face backbones behave as models of timm do, at any size, and train."""

from __future__ import annotations

import warnings

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import list_models
from torch import Tensor, nn

import lightning_pfc.models  # noqa: F401  (registers the names)
from lightning_pfc.models.backbone import create_backbone, output_width
from lightning_pfc.models.neck import create_neck

SMALL = ["iresnet18", "mobilefacenet", "face_vit_tiny"]


@pytest.fixture(scope="module", params=SMALL)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_names_are_registered() -> None:
    assert {"iresnet100", "mobilefacenet_large", "face_vit_huge"} <= set(list_models())


def test_default_is_an_embedding_of_the_right_input(name: str) -> None:
    model = timm.create_model(name, img_size=32).eval()
    assert model(images(2, 3, 32, 32)).shape == (2, 512)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model.num_features == model.head_hidden_size == model.embedding_dim == 512
    data = resolve_model_data_config(timm.create_model(name))
    assert data["input_size"] == (3, 112, 112)
    assert data["mean"] == data["std"] == (0.5, 0.5, 0.5)


def test_grayscale_not_square_and_another_width(name: str) -> None:
    model = timm.create_model(name, in_chans=1, img_size=(48, 33), embedding_dim=24).eval()
    assert model(images(2, 1, 48, 33)).shape == (2, 24)
    with pytest.raises(ValueError, match=r"got images of shape \(2, 3, 48, 33\).*\(B, 1, 48, 33\).*in_chans"):
        model(images(2, 3, 48, 33))
    with pytest.raises(ValueError, match="img_size"):
        model(images(2, 1, 64, 64))


def test_classifier_can_be_had_and_dropped(name: str) -> None:
    model = timm.create_model(name, img_size=32, num_classes=7).eval()
    x = images(2, 3, 32, 32)
    assert model(x).shape == (2, 7)
    assert model.get_classifier().out_features == 7
    embedding = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(0)
    assert torch.equal(model(x), embedding)
    with pytest.raises(ValueError, match="global_pool='avg'"):
        model.reset_classifier(3, global_pool="avg")


def test_feature_maps(name: str) -> None:
    model = timm.create_model(name, img_size=32, features_only=True).eval()
    x = images(2, 3, 32, 32)
    maps = model(x)
    assert len(maps) == len(model.feature_info.channels()) >= 3
    for found, channels, stride in zip(
        maps, model.feature_info.channels(), model.feature_info.reduction(), strict=True
    ):
        assert found.shape[:2] == (2, channels)
        assert found.shape[2] == (32 // 9 if "vit" in name else 32 // stride)
    fewer = timm.create_model(name, img_size=32, features_only=True, out_indices=(1,)).eval()
    assert len(fewer(x)) == 1
    assert sum(p.numel() for p in fewer.parameters()) < sum(p.numel() for p in model.parameters())


def test_last_feature_map_is_the_one_of_forward(name: str) -> None:
    model = timm.create_model(name, img_size=32).eval()
    x = images(2, 3, 32, 32)
    last, found = model.forward_intermediates(x, indices=1, norm=True)
    torch.testing.assert_close(last, model.forward_features(x))
    if name != "mobilefacenet":  # its last map has one more convolution before the embedding layers
        torch.testing.assert_close(found[0], last)


@pytest.mark.parametrize("masked", [False, True])
def test_every_trainable_parameter_gets_a_gradient(name: str, masked: bool) -> None:
    """DDP ends a run at its second step otherwise."""
    extra = {"mask_ratio": 0.5} if masked and "vit" in name else {}
    model = timm.create_model(name, img_size=32, **extra).train()
    model(images(4, 3, 32, 32)).square().sum().backward()
    without = [key for key, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []
    fixed = [key for key, p in model.named_parameters() if not p.requires_grad]
    unmasked = ["mask_token"] if "vit" in name and not masked else []
    assert fixed == (["features.weight"] if name.startswith("iresnet") else unmasked)


def test_checkpointed_activations_give_the_same_gradients(name: str) -> None:
    model = timm.create_model(name, img_size=32).train()
    x, gradients = images(4, 3, 32, 32), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_embedding_layers_stay_out_of_autocast(name: str) -> None:
    model = timm.create_model(name, img_size=32).eval()
    x = images(2, 3, 32, 32)
    plain = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(x)
        body = model.conv1(x) if hasattr(model, "conv1") else None
    assert mixed.dtype == torch.float32
    assert body is None or body.dtype == torch.bfloat16
    assert torch.cosine_similarity(plain, mixed).min() > 0.99
    assert model.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_average_pooling_takes_any_size() -> None:
    model = timm.create_model("iresnet18", global_pool="avg").eval()
    assert model.fc.in_features == 512
    assert model(images(1, 3, 40, 56)).shape == model(images(1, 3, 112, 112)).shape == (1, 512)


def test_zero_init_last_starts_as_the_shortcut() -> None:
    model = timm.create_model("iresnet18", zero_init_last=True, img_size=32).eval()
    x = images(1, 64, 8, 8)
    torch.testing.assert_close(model.layer1[1](x), x)


def test_mask_ratio_is_the_share_that_is_masked() -> None:
    """The peers take every ratio above 0 for 0.1."""
    seen = []
    for ratio in (0.05, 0.5):
        model = timm.create_model("face_vit_tiny", mask_ratio=ratio).train()
        handle = model.blocks[0].register_forward_hook(lambda _m, args, _y: seen.append(args[0].shape[1]))
        model(images(2, 3, 112, 112))
        handle.remove()
        model.eval()
        model(images(2, 3, 112, 112))
    assert seen == [int(144 * 0.95), int(144 * 0.5)]


def test_masked_tokens_come_back_in_their_places() -> None:
    model = timm.create_model("face_vit_tiny", img_size=36, depth=1, mask_ratio=0.5).train()
    model.norm = nn.Identity()
    model.blocks = nn.ModuleList([nn.Identity()])
    with torch.no_grad():
        model.mask_token.fill_(7.0)
        tokens = model._tokens(images(3, 3, 36, 36))
        model.mask_ratio = 0.0
        whole = model._tokens(images(3, 3, 36, 36))
    masked = (tokens == 7.0).all(2)
    assert (masked.sum(1) == 8).all()
    assert torch.equal(tokens[~masked], whole[~masked])
    assert len({tuple(row) for row in masked.tolist()}) > 1, "each image draws its own tokens"


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("iresnet18", {"img_size": 0}, "img_size=0"),
        ("iresnet18", {"embedding_dim": 0}, "embedding_dim=0"),
        ("iresnet18", {"global_pool": "max"}, "'flatten' or 'avg'"),
        ("mobilefacenet", {"num_classes": -1}, "num_classes=-1"),
        ("face_vit_tiny", {"mask_ratio": 1.0}, r"\[0, 1\)"),
        ("face_vit_tiny", {"img_size": 8}, "no patch fits"),
    ],
)
def test_wrong_arguments_are_named(model: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model(model, **arguments)


@pytest.mark.parametrize("name", SMALL)
def test_a_neckless_module_gets_the_embedding(name: str) -> None:
    """As ``PartialFCModule(backbone=name, neck="none")`` builds it: for the size of the data, without storage too."""
    with torch.device("meta"):
        model = create_backbone(name, input_size=(1, 64, 64), options={"embedding_dim": 128})
    assert output_width(model, (1, 64, 64)) == 128
    assert isinstance(create_neck("none", 128, 128), nn.Identity)


@pytest.mark.parametrize(("name", "other"), [("resnet18", True), ("vit_tiny_patch16_224.augreg_in21k", False)])
def test_weights_that_know_another_scale_of_pixels_are_warned_of(
    name: str, other: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, pretrained, **k: create(*a, **k))  # nothing is downloaded
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        create_backbone(name, input_size=(3, 224, 224), pretrained=True)
        create_backbone(name, input_size=(3, 224, 224))
    found = [str(each.message) for each in said if "were trained on pixels less" in str(each.message)]
    assert len(found) == other
    assert not other or "(0.485, 0.456, 0.406)" in found[0]
