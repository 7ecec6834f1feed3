"""MobileFaceNet (arXiv:1804.07573) as InsightFace trains it, with names and shapes of its published weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_pfc.models.embedder import IMAGE_SIZE, Embedder, face_cfg, out_of_autocast, register

__all__ = ["MobileFaceNet"]

# Where the map has its final size for one stride, as an index into `layers`: strides 2, 4, 8, 16.
STAGE_ENDS = (1, 3, 5, 7)


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, and a PReLU unless ``linear``."""

    def __init__(
        self, inside: int, outside: int, kernel: int | tuple[int, int] = 1, stride: int = 1, padding: int = 0,
        groups: int = 1, linear: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        conv = nn.Conv2d(inside, outside, kernel, stride, padding, groups=groups, bias=False)
        last = [] if linear else [nn.PReLU(outside)]
        self.layers = nn.Sequential(conv, nn.BatchNorm2d(outside), *last)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class Bottleneck(nn.Module):
    """Expand to ``hidden`` channels, 3x3 depth-wise convolution, project back; added to the input if ``residual``."""

    def __init__(self, inside: int, outside: int, hidden: int, stride: int, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.layers = nn.Sequential(
            ConvNorm(inside, hidden),
            ConvNorm(hidden, hidden, 3, stride, 1, groups=hidden),
            ConvNorm(hidden, outside, linear=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class Residuals(nn.Module):
    """``depth`` residual bottlenecks of stride 1."""

    def __init__(self, width: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Bottleneck(width, width, hidden, 1, True) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class GlobalDepthwise(nn.Module):
    """The embedding layers: one depth-wise convolution as large as the map, then a linear layer and batch norm."""

    def __init__(self, width: int, size: tuple[int, int], embedding_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvNorm(width, width, size, groups=width, linear=True),
            nn.Flatten(),
            nn.Linear(width, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class MobileFaceNet(Embedder):
    """MobileFaceNet with its embedding layers; a state dict of InsightFace's ``arcface_torch`` loads unchanged.

    Wider than the paper's by ``scale``. In the base model the second layer is a convolution in 64 groups over
    ``64 * scale`` channels, which is depth-wise only at ``scale=1``: the published weights have that shape.

    Args:
        blocks: number of bottlenecks of the four stages.
        scale: factor on the widths.
        embedding_dim: width of the embedding; published: 512.
        img_size: side or (height, width) of the images; published: 112. It decides the kernel of the last convolution.
        in_chans: 3, or 1 for grayscale.
        num_classes: width of a linear classifier behind the embedding; 0 is none.
        drop_rate: dropout on the feature map's channels before the embedding layers.

    Raises:
        ValueError: for an argument out of range, and in ``forward`` for images of another size than ``img_size``.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int] = (1, 4, 6, 2),
        *,
        scale: int = 2,
        embedding_dim: int = 512,
        img_size: int | tuple[int, int] = IMAGE_SIZE,
        in_chans: int = 3,
        num_classes: int = 0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(embedding_dim=embedding_dim, img_size=img_size, in_chans=in_chans, num_classes=num_classes)
        narrow, wide, last = 64 * scale, 128 * scale, 512
        if blocks[0] == 1:
            second: nn.Module = ConvNorm(narrow, narrow, 3, 1, 1, groups=64)
        else:
            second = Residuals(narrow, 128, blocks[0])
        self.layers = nn.ModuleList(
            [
                ConvNorm(in_chans, narrow, 3, 2, 1),
                second,
                Bottleneck(narrow, narrow, 128, 2, False),
                Residuals(narrow, 128, blocks[1]),
                Bottleneck(narrow, wide, 256, 2, False),
                Residuals(wide, 256, blocks[2]),
                Bottleneck(wide, wide, 512, 2, False),
                Residuals(wide, 256, blocks[3]),
            ]
        )
        self.feature_info = [
            {"num_chs": width, "reduction": 2 ** (i + 1), "module": f"layers.{end}"}
            for i, (width, end) in enumerate(zip((narrow, narrow, wide, wide), STAGE_ENDS, strict=True))
        ]
        self.conv_sep = ConvNorm(wide, last)
        self.dropout = nn.Dropout2d(drop_rate)
        size = (math.ceil(self.img_size[0] / 16), math.ceil(self.img_size[1] / 16))
        self.features = GlobalDepthwise(last, size, embedding_dim)
        self.reset_classifier(num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module is not self.classifier:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _run(self, layer: nn.Module, x: Tensor) -> Tensor:
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            y: Tensor = checkpoint(layer, x, use_reentrant=False)
        else:
            y = layer(x)
        return y

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> (B, 512, ceil(H/16), ceil(W/16))."""
        self._check_input(x)
        for layer in self.layers:
            x = self._run(layer, x)
        return out_of_autocast(self.conv_sep, x)

    def embed(self, features: Tensor) -> Tensor:
        """(B, 512, H', W') -> (B, embedding_dim)."""
        return out_of_autocast(self.features, self.dropout(features))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps at stride 2, 4, 8, 16 for those of ``indices`` (timm's interface); there is no norm to apply."""
        if output_fmt != "NCHW":
            raise ValueError(f"forward_intermediates(output_fmt={output_fmt!r}): feature maps are 'NCHW'.")
        wanted, last = feature_take_indices(len(STAGE_ENDS), indices)
        found: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            if stop_early and i > STAGE_ENDS[last]:
                return found if intermediates_only else (x, found)
            x = self._run(layer, x)
            if i in STAGE_ENDS and STAGE_ENDS.index(i) in wanted:
                found.append(x)
        return found if intermediates_only else (out_of_autocast(self.conv_sep, x), found)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the layers that ``indices`` do not need (timm's interface)."""
        wanted, last = feature_take_indices(len(STAGE_ENDS), indices)
        self.layers = self.layers[: STAGE_ENDS[last] + 1]
        if prune_head:
            self.conv_sep = self.features = nn.Identity()  # type: ignore[assignment]
            self.reset_classifier(0)
        return list(wanted)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which layer a parameter belongs to, for layer-wise learning rates (timm's interface)."""
        return {
            "stem": r"^layers\.0\.",
            "blocks": [
                (r"^layers\.(\d+)" if coarse else r"^layers\.(\d+)\.layers\.(\d+)", None),
                (r"^(?:conv_sep|features)", (99999,)),
            ],
        }


default_cfgs = generate_default_cfgs(
    {name: face_cfg(first_conv="layers.0.layers.0") for name in ("mobilefacenet", "mobilefacenet_large")}
)


def _create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> MobileFaceNet:
    model: MobileFaceNet = build_model_with_cfg(
        MobileFaceNet,
        name,
        pretrained,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **kwargs,
    )
    return model


@register
def mobilefacenet(pretrained: bool = False, **kwargs: Any) -> MobileFaceNet:
    """MobileFaceNet, InsightFace's ``mbf``: twice the paper's width."""
    return _create("mobilefacenet", pretrained, {"blocks": (1, 4, 6, 2), "scale": 2} | kwargs)


@register
def mobilefacenet_large(pretrained: bool = False, **kwargs: Any) -> MobileFaceNet:
    """MobileFaceNet large, InsightFace's ``mbf_large``: four times the width, twice the depth."""
    return _create("mobilefacenet_large", pretrained, {"blocks": (2, 8, 12, 4), "scale": 4} | kwargs)
