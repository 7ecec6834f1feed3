"""Inception-ResNet v1 (arXiv:1602.07261, section 3.2) as FaceNet's ports have it, with facenet-pytorch's names."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs
from torch import Tensor, nn

from lightning_pfc.models.embedder import Embedder, face_cfg, out_of_autocast, register

__all__ = ["InceptionResNetV1"]

PUBLISHED_SIZE, LEAST_SIZE = 160, 75  # a smaller picture ends before the last layer: convolutions are not padded
_Kernel = int | tuple[int, int]
_Step = (
    tuple[int, _Kernel] | tuple[int, _Kernel, int]
)  # channels, kernel, stride where it is not padded to keep the size


def _convolution(inside: int, outside: int, kernel: _Kernel, stride: int = 1, padding: _Kernel = 0) -> nn.Sequential:
    layers: list[tuple[str, nn.Module]] = [
        ("conv", nn.Conv2d(inside, outside, kernel, stride, padding, bias=False)),
        ("bn", nn.BatchNorm2d(outside, eps=1e-3)),
        ("relu", nn.ReLU(inplace=True)),
    ]
    return nn.Sequential(OrderedDict(layers))


def _branch(inside: int, steps: Sequence[_Step]) -> nn.Sequential:
    """One convolution, or several in a row, which are numbered."""
    made = []
    for step in steps:
        outside, kernel = step[:2]
        high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
        stride, padding = (step[2], 0) if len(step) == 3 else (1, (high // 2, wide // 2))
        made.append(_convolution(inside, outside, kernel, stride, padding))
        inside = outside
    return made[0] if len(made) == 1 else nn.Sequential(*made)


class Residual(nn.Module):
    """``relu(x + scale * conv2d(branches of x))``, the last one without relu: (B, C, H, W) -> the same."""

    def __init__(self, width: int, scale: float, *branches: Sequence[_Step], relu: bool = True) -> None:
        super().__init__()
        self.scale, self.relu = scale, relu
        self.names = [f"branch{number}" for number in range(len(branches))]
        for name, steps in zip(self.names, branches, strict=True):
            self.add_module(name, _branch(width, steps))
        self.conv2d = nn.Conv2d(sum(steps[-1][0] for steps in branches), width, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = torch.cat([self.get_submodule(name)(x) for name in self.names], 1)
        y = x + self.scale * self.conv2d(found)
        return torch.relu(y) if self.relu else y


class Reduction(nn.Module):
    """Branches that end in stride 2, and the largest of 3 x 3, side by side: (B, C, H, W) -> (B, C', H / 2, W / 2)."""

    def __init__(self, inside: int, *branches: Sequence[_Step]) -> None:
        super().__init__()
        self.names = [f"branch{number}" for number in range(len(branches))]
        for name, steps in zip(self.names, branches, strict=True):
            self.add_module(name, _branch(inside, steps))
        self.pool = nn.MaxPool2d(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([*(self.get_submodule(name)(x) for name in self.names), self.pool(x)], 1)


def _block35() -> Residual:
    return Residual(256, 0.17, [(32, 1)], [(32, 1), (32, 3)], [(32, 1), (32, 3), (32, 3)])


def _block17() -> Residual:
    return Residual(896, 0.10, [(128, 1)], [(128, 1), (128, (1, 7)), (128, (7, 1))])


def _block8(scale: float = 0.20, relu: bool = True) -> Residual:
    return Residual(1792, scale, [(192, 1)], [(192, 1), (192, (1, 3)), (192, (3, 1))], relu=relu)


class InceptionResNetV1(Embedder):
    """Inception-ResNet v1 with its embedding layers: average over places, dropout, linear without bias, batch norm.

    A state dict of facenet-pytorch's ``InceptionResnetV1`` loads unchanged, but for its ``logits``. Theirs brings the
    embedding to length 1, which here is left to the head, and takes pixels as ``(x - 127.5) / 128``: here it is 127.5.

    Args:
        embedding_dim: width of the embedding; published: 512.
        img_size: side or (height, width) of the images, which ``forward`` takes of any size from 75 on; published: 160.
        in_chans: 3, or 1 for grayscale.
        num_classes: width of a linear classifier behind the embedding; 0 is none.
        drop_rate: dropout before the linear layer; FaceNet's ports: 0.6.

    Raises:
        ValueError: for an argument out of range, and in ``forward`` for images that are too small.
    """

    def __init__(
        self,
        *,
        embedding_dim: int = 512,
        img_size: int | tuple[int, int] = PUBLISHED_SIZE,
        in_chans: int = 3,
        num_classes: int = 0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(embedding_dim=embedding_dim, img_size=img_size, in_chans=in_chans, num_classes=num_classes)
        if min(self.img_size) < LEAST_SIZE:
            raise ValueError(f"InceptionResNetV1(img_size={img_size!r}): img_size must be at least {LEAST_SIZE}.")
        self.feature_info = [
            {"num_chs": width, "reduction": stride, "module": name}
            for width, stride, name in ((256, 8, "repeat_1"), (896, 16, "repeat_2"), (1792, 32, "block8"))
        ]
        self.conv2d_1a = _convolution(in_chans, 32, 3, 2)
        self.conv2d_2a = _convolution(32, 32, 3)
        self.conv2d_2b = _convolution(32, 64, 3, padding=1)
        self.maxpool_3a = nn.MaxPool2d(3, 2)
        self.conv2d_3b = _convolution(64, 80, 1)
        self.conv2d_4a = _convolution(80, 192, 3)
        self.conv2d_4b = _convolution(192, 256, 3, 2)
        self.repeat_1 = nn.Sequential(*(_block35() for _ in range(5)))
        self.mixed_6a = Reduction(256, [(384, 3, 2)], [(192, 1), (192, 3), (256, 3, 2)])
        self.repeat_2 = nn.Sequential(*(_block17() for _ in range(10)))
        ends: list[_Step] = [(256, 1), (256, 3, 2)]
        self.mixed_7a = Reduction(896, [(256, 1), (384, 3, 2)], ends, [(256, 1), (256, 3), (256, 3, 2)])
        self.repeat_3 = nn.Sequential(*(_block8() for _ in range(5)))
        self.block8 = _block8(scale=1.0, relu=False)
        self.dropout = nn.Dropout(drop_rate)
        self.last_linear = nn.Linear(1792, embedding_dim, bias=False)
        self.last_bn = nn.BatchNorm1d(embedding_dim, eps=1e-3)
        self.reset_classifier(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _repeated(self, blocks: nn.Sequential, x: Tensor) -> Tensor:
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            y: Tensor = checkpoint_seq(blocks, x)
        else:
            y = blocks(x)
        return y

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> (B, 1792, H', W'), about a thirty-second of the size."""
        self._check_input(x)
        x = self.maxpool_3a(self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x))))
        x = self.conv2d_4b(self.conv2d_4a(self.conv2d_3b(x)))
        x = self.mixed_6a(self._repeated(self.repeat_1, x))
        x = self.mixed_7a(self._repeated(self.repeat_2, x))
        y: Tensor = self.block8(self._repeated(self.repeat_3, x))
        return y

    def embed(self, features: Tensor) -> Tensor:
        """(B, 1792, H', W') -> (B, embedding_dim)."""
        x = self.dropout(features.mean(dim=(2, 3)))
        return out_of_autocast(self.last_bn, out_of_autocast(self.last_linear, x))

    def _accepts(self, height: int, width: int) -> bool:
        return min(height, width) >= LEAST_SIZE

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which layer a parameter belongs to, for layer-wise learning rates (timm's interface)."""
        return {
            "stem": r"^conv2d_",
            "blocks": [
                (r"^repeat_(\d+)" if coarse else r"^repeat_(\d+)\.(\d+)", None),
                (r"^mixed_6a", (1, 99)),
                (r"^mixed_7a", (2, 99)),
                (r"^block8", (3, 99)),
                (r"^last_", (99999,)),
            ],
        }


default_cfgs = generate_default_cfgs(
    {
        "inception_resnet_v1": face_cfg(
            input_size=(3, PUBLISHED_SIZE, PUBLISHED_SIZE), fixed_input_size=False, first_conv="conv2d_1a.conv"
        )
    }
)


@register
def inception_resnet_v1(pretrained: bool = False, **kwargs: Any) -> InceptionResNetV1:
    """Inception-ResNet v1, facenet-pytorch's ``InceptionResnetV1``."""
    model: InceptionResNetV1 = build_model_with_cfg(
        InceptionResNetV1,
        "inception_resnet_v1",
        pretrained,
        feature_cfg={"out_indices": (0, 1, 2), "feature_cls": "hook"},
        **kwargs,
    )
    return model
