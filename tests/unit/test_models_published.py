"""Names, shapes and outputs of InsightFace's published weights, and of facenet-pytorch's.

The hashes and numbers below were taken once from the public ``arcface_torch`` backbones and facenet-pytorch, run on the
same made-up state dict. Outputs of ours differed from theirs by less than 4e-6 (ViT) and by 0 (the others).
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

import lightning_pfc.models  # noqa: F401  (registers the names)

# name: (tensors in the state dict, numbers in it, hash of all names and shapes)
LAYOUTS = {
    "iresnet18": (187, 24040351, "9ef0efe33c6aacc5"),
    "iresnet34": (331, 34165239, "715897e9691bb23a"),
    "iresnet50": (475, 43629071, "68068afafeed220d"),
    "iresnet100": (925, 65225946, "793d7032adbb1d8e"),
    "iresnet200": (1807, 118970285, "1e953a06c1f6d4a0"),
    "mobilefacenet": (333, 2083378, "2e731c3ede2a27c8"),
    "mobilefacenet_large": (606, 6367707, "a1e2275eecd1b03a"),
    "inception_resnet_v1": (714, 23512336, "a76af126584f1181"),
    "face_vit_tiny": (150, 19139330, "da97c1c26aeaa1f3"),
    "face_vit_small": (150, 76025346, "60d91943d7ec69da"),
    "face_vit_base": (282, 113835522, "a433697f66528dab"),
    "face_vit_large": (282, 255686914, "8ee9bc1d07dee773"),
    "face_vit_huge": (546, 756397058, "9c3e61f9ecdd2f13"),
}

# Some of the names, to read: where the stages, the embedding layers and the odd ones are.
NAMES = {
    "iresnet50": {
        "conv1.weight": (64, 3, 3, 3),
        "layer1.0.downsample.1.running_var": (64,),
        "layer3.13.prelu.weight": (256,),
        "fc.weight": (512, 25088),
        "features.weight": (512,),
    },
    "mobilefacenet": {
        "layers.1.layers.0.weight": (128, 2, 3, 3),
        "layers.5.layers.5.layers.2.layers.1.bias": (256,),
        "conv_sep.layers.2.weight": (512,),
        "features.layers.0.layers.0.weight": (512, 1, 7, 7),
        "features.layers.2.weight": (512, 512),
    },
    "inception_resnet_v1": {
        "conv2d_2b.conv.weight": (64, 32, 3, 3),
        "repeat_2.9.branch1.2.conv.weight": (128, 128, 7, 1),
        "mixed_7a.branch2.2.bn.running_var": (256,),
        "block8.conv2d.bias": (1792,),
        "last_linear.weight": (512, 1792),
    },
    "face_vit_tiny": {
        "pos_embed": (1, 144, 256),
        "mask_token": (1, 1, 256),
        "blocks.11.attn.qkv.weight": (768, 256),
        "feature.0.weight": (256, 36864),
        "feature.3.running_mean": (512,),
    },
}

# First 6 values of the first embedding, last 3 of the second.
OUTPUTS = {
    "iresnet18": ([0.62928, -0.27852, 0.36564, 0.21615, 0.57488, 0.53195], [-0.62727, 1.01155, -0.50827]),
    "iresnet50": ([-0.23546, -0.31404, -0.1641, 1.31141, -2.99675, 1.62463], [-2.13558, 5.28992, -1.78081]),
    "mobilefacenet": ([2.34255, -6.14704, 0.19885, 0.77812, -5.59466, 6.52556], [-6.52542, 4.39547, -3.85659]),
    "mobilefacenet_large": ([3.64355, -8.64913, 1.35234, 1.32468, -1.47649, 1.3027], [-5.81246, 4.43675, -4.86941]),
    "inception_resnet_v1": ([-2.99019, 3.64957, -1.99736, 4.06667, -3.9374, 4.06591], [-2.59856, 3.17492, -2.03965]),
    "face_vit_tiny": ([0.45634, 2.63651, 1.94112, -2.61326, -1.46421, 1.48773], [1.85998, -0.50355, -3.45313]),
}


def formula_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """A state dict made by a formula, in order of the names: convolutions of unit gain, norms near 1, biases near 0."""
    state = {}
    for i, (name, value) in enumerate(sorted(model.state_dict().items())):
        shape = tuple(value.shape)
        u = torch.frac(
            torch.arange(1, math.prod(shape) + 1, dtype=torch.float64) * 0.6180339887498949 + 0.754877666246693 * i
        )
        if name.endswith("num_batches_tracked"):
            made = torch.zeros(shape, dtype=torch.int64)
        elif name.endswith("running_var"):
            made = (0.5 + u).float().reshape(shape)
        elif len(shape) <= 1:
            made = ((0.75 if name.endswith("weight") else -0.25) + 0.5 * u).float().reshape(shape)
        else:
            made = ((2 * u - 1) * math.sqrt(3 / math.prod(shape[1:]))).float().reshape(shape)
        state[name] = made
    return state


def formula_images(count: int = 2) -> Tensor:
    flat = torch.frac(torch.arange(count * 3 * 112 * 112) * 0.6180339887498949).float()
    return flat.reshape(count, 3, 112, 112) * 2 - 1


@pytest.mark.parametrize("name", LAYOUTS)
def test_names_and_shapes_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    text = "\n".join(f"{key} {'x'.join(map(str, shape))}" for key, shape in sorted(shapes.items()))
    for key, shape in NAMES.get(name, {}).items():
        assert shapes[key] == shape
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == LAYOUTS[name][:2]
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == LAYOUTS[name][2]


@pytest.mark.parametrize("name", OUTPUTS)
def test_output_is_the_published_networks(name: str) -> None:
    model = timm.create_model(name).eval()
    model.load_state_dict(formula_state(model), strict=True)
    with torch.no_grad():
        y = model(formula_images())
    first, last = (torch.tensor(values) for values in OUTPUTS[name])
    torch.testing.assert_close(y[0, :6], first, rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(y[1, -3:], last, rtol=1e-4, atol=2e-4)


def test_timm_loads_a_published_file(tmp_path: Path) -> None:
    model = timm.create_model("mobilefacenet")
    torch.save(formula_state(model), tmp_path / "backbone.pth")
    loaded = timm.create_model("mobilefacenet", num_classes=0, checkpoint_path=str(tmp_path / "backbone.pth"))
    for name, value in formula_state(model).items():
        assert torch.equal(loaded.state_dict()[name], value), name
