"""IResNet-18 to 200: the residual network of ArcFace, with names and shapes of InsightFace's published weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_pfc.models.conv3x3 import Conv3x3
from lightning_pfc.models.embedder import IMAGE_SIZE, Embedder, face_cfg, out_of_autocast, register

__all__ = ["IResNet"]

WIDTHS = (64, 128, 256, 512)


class IBasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm before, between and behind: (B, inside, H, W) -> (B, outside, H', W').

    Unlike in a ResNet, nothing is applied to the sum of the two branches (ArcFace, arXiv:1801.07698, section 3.1).
    """

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv1 = Conv3x3(inside, outside)
        self.bn2 = nn.BatchNorm2d(outside)
        self.prelu = nn.PReLU(outside)
        self.conv2 = Conv3x3(outside, outside, stride)
        self.bn3 = nn.BatchNorm2d(outside)
        self.downsample = None
        if stride != 1 or inside != outside:
            self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        y = self.bn3(self.conv2(y))
        return y + (x if self.downsample is None else self.downsample(x))


class IResNet(Embedder):
    """IResNet with its embedding layers: batch norm, flatten, dropout, linear ``fc``, batch norm ``features``.

    A state dict of InsightFace's ``arcface_torch`` loads unchanged (RGB in [-1, 1], 112 x 112). The last batch norm has
    a weight that stays 1 (``requires_grad=False``) and a learned bias, as there.

    Args:
        layers: number of blocks of each of the four stages.
        embedding_dim: width of the embedding; published: 512.
        img_size: side or (height, width) of the images; published: 112. It decides the width of ``fc``.
        global_pool: "flatten" (published: each place of the map has its own weights) or "avg" (any size at run time).
        in_chans: 3, or 1 for grayscale.
        num_classes: width of a linear classifier behind the embedding; 0 is none.
        drop_rate: dropout before ``fc``.
        zero_init_last: start every block as the identity (last batch norm's weight 0).

    Raises:
        ValueError: for an argument out of range, and in ``forward`` for images of another size than ``img_size``.
    """

    def __init__(
        self,
        layers: tuple[int, int, int, int],
        *,
        embedding_dim: int = 512,
        img_size: int | tuple[int, int] = IMAGE_SIZE,
        global_pool: str = "flatten",
        in_chans: int = 3,
        num_classes: int = 0,
        drop_rate: float = 0.0,
        zero_init_last: bool = False,
    ) -> None:
        super().__init__(embedding_dim=embedding_dim, img_size=img_size, in_chans=in_chans, num_classes=num_classes)
        if global_pool not in ("flatten", "avg"):
            raise ValueError(f"IResNet(global_pool={global_pool!r}): global_pool must be 'flatten' or 'avg'.")
        self.global_pool = global_pool
        self.feature_info = [
            {"num_chs": width, "reduction": 2 ** (stage + 1), "module": f"layer{stage + 1}"}
            for stage, width in enumerate(WIDTHS)
        ]
        self.conv1 = Conv3x3(in_chans, WIDTHS[0])
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.prelu = nn.PReLU(WIDTHS[0])
        inside = WIDTHS[0]
        for stage, (width, depth) in enumerate(zip(WIDTHS, layers, strict=True)):
            blocks = [IBasicBlock(inside if i == 0 else width, width, 2 if i == 0 else 1) for i in range(depth)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            inside = width
        self.bn2 = nn.BatchNorm2d(inside)
        self.dropout = nn.Dropout(drop_rate)
        places = 1 if global_pool == "avg" else math.prod(math.ceil(side / 16) for side in self.img_size)
        self.fc = nn.Linear(inside * places, embedding_dim)
        self.features = nn.BatchNorm1d(embedding_dim)
        self.features.weight.requires_grad_(False)
        self.reset_classifier(num_classes)
        self._initialise(zero_init_last)

    def _initialise(self, zero_init_last: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.1)
            elif isinstance(module, IBasicBlock) and zero_init_last:
                nn.init.zeros_(module.bn3.weight)

    def _stages(self) -> list[nn.Sequential]:
        return [self.get_submodule(f"layer{stage + 1}") for stage in range(len(WIDTHS))]  # type: ignore[misc]

    def _run_stage(self, stage: nn.Sequential, x: Tensor) -> Tensor:
        for block in stage:
            if self.grad_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> (B, 512, ceil(H/16), ceil(W/16)), after the last 2-d batch norm."""
        self._check_input(x)
        x = self.prelu(self.bn1(self.conv1(x)))
        for stage in self._stages():
            x = self._run_stage(stage, x)
        y: Tensor = self.bn2(x)
        return y

    def embed(self, features: Tensor) -> Tensor:
        """(B, 512, H', W') -> (B, embedding_dim)."""
        x = features.mean(dim=(2, 3)) if self.global_pool == "avg" else features.flatten(1)
        return out_of_autocast(self.features, out_of_autocast(self.fc, self.dropout(x)))

    def _accepts(self, height: int, width: int) -> bool:
        return self.global_pool == "avg" or super()._accepts(height, width)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps of the stages in ``indices`` (timm's interface): (B, 64 .. 512, H / 2 .. 16, W / 2 .. 16)."""
        if output_fmt != "NCHW":
            raise ValueError(f"forward_intermediates(output_fmt={output_fmt!r}): feature maps are 'NCHW'.")
        wanted, last = feature_take_indices(len(WIDTHS), indices)
        found: list[Tensor] = []
        x = self.prelu(self.bn1(self.conv1(x)))
        for i, stage in enumerate(self._stages()):
            if stop_early and i > last:
                break
            x = self._run_stage(stage, x)
            if i in wanted:
                found.append(self.bn2(x) if norm and i == len(WIDTHS) - 1 else x)
        return found if intermediates_only else (self.bn2(x) if not stop_early else x, found)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages, norm and embedding layers that ``indices`` do not need (timm's interface)."""
        wanted, last = feature_take_indices(len(WIDTHS), indices)
        for stage in range(last + 1, len(WIDTHS)):
            setattr(self, f"layer{stage + 1}", nn.Sequential())
        if prune_norm or last < len(WIDTHS) - 1:
            self.bn2 = nn.Identity()  # type: ignore[assignment]
        if prune_head:
            self.fc = self.features = nn.Identity()  # type: ignore[assignment]
            self.reset_classifier(0)
        return list(wanted)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which layer a parameter belongs to, for layer-wise learning rates (timm's interface)."""
        return {
            "stem": r"^(?:conv1|bn1|prelu)",
            "blocks": [
                (r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)", None),
                (r"^(?:bn2|fc|features)", (99999,)),
            ],
        }


default_cfgs = generate_default_cfgs(
    {f"iresnet{depth}": face_cfg(first_conv="conv1") for depth in (18, 34, 50, 100, 200)}
)


def _create(name: str, pretrained: bool, layers: tuple[int, int, int, int], kwargs: dict[str, Any]) -> IResNet:
    model: IResNet = build_model_with_cfg(
        IResNet,
        name,
        pretrained,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        layers=layers,
        **kwargs,
    )
    return model


@register
def iresnet18(pretrained: bool = False, **kwargs: Any) -> IResNet:
    """IResNet-18, InsightFace's ``r18``."""
    return _create("iresnet18", pretrained, (2, 2, 2, 2), kwargs)


@register
def iresnet34(pretrained: bool = False, **kwargs: Any) -> IResNet:
    """IResNet-34, InsightFace's ``r34``."""
    return _create("iresnet34", pretrained, (3, 4, 6, 3), kwargs)


@register
def iresnet50(pretrained: bool = False, **kwargs: Any) -> IResNet:
    """IResNet-50, InsightFace's ``r50``: 14 blocks in the third stage, not ResNet-50's 6 bottlenecks."""
    return _create("iresnet50", pretrained, (3, 4, 14, 3), kwargs)


@register
def iresnet100(pretrained: bool = False, **kwargs: Any) -> IResNet:
    """IResNet-100, InsightFace's ``r100``."""
    return _create("iresnet100", pretrained, (3, 13, 30, 3), kwargs)


@register
def iresnet200(pretrained: bool = False, **kwargs: Any) -> IResNet:
    """IResNet-200, InsightFace's ``r200``."""
    return _create("iresnet200", pretrained, (6, 26, 60, 6), kwargs)
