"""GlyphNet: a small residual network for small grey pictures, which a CPU trains in minutes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from lightning_pfc.models.conv3x3 import Conv3x3
from lightning_pfc.models.embedder import register


def _conv(inside: int, outside: int, stride: int = 1) -> list[nn.Module]:
    return [Conv3x3(inside, outside, stride), nn.BatchNorm2d(outside)]


class Block(nn.Module):
    """``relu(x + conv(relu(conv(x))))``; the branch starts at zero (arXiv:1706.02677, section 5.1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        last = _conv(width, width)
        nn.init.zeros_(last[1].weight)  # type: ignore[arg-type]
        self.branch = nn.Sequential(*_conv(width, width), nn.ReLU(inplace=True), *last)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) -> the same shape."""
        return F.relu(x + self.branch(x))


class GlyphNet(nn.Module):
    """Stages that each halve the picture, and a global depthwise convolution, which keeps apart where a stroke is.

    An average over places, the usual end of a classifier, would forget it.

    Args:
        in_chans: C of the images.
        img_size: H = W of the images, or (H, W); multiples of ``2 ** len(widths)``.
        widths: channels of the stages.
        depths: residual blocks of each stage, after the convolution with stride 2.
        num_classes: width of a linear classifier; 0 for features.

    Raises:
        ValueError: if stages do not match, or the image is too small or no multiple.
    """

    def __init__(
        self,
        in_chans: int = 1,
        img_size: int | Sequence[int] = 32,
        widths: Sequence[int] = (32, 64, 128, 256),
        depths: Sequence[int] = (0, 1, 1, 1),
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        if len(widths) != len(depths) or not widths:
            raise ValueError(f"widths={list(widths)} and depths={list(depths)} must name the same stages.")
        height, width = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        step = 2 ** len(widths)
        if height % step or width % step or height < step or width < step:
            raise ValueError(f"img_size={(height, width)} must be multiples of {step} for {len(widths)} stages.")
        stages: list[nn.Module] = []
        inside = in_chans
        for channels, depth in zip(widths, depths, strict=True):
            blocks = [Block(channels) for _ in range(depth)]
            stages.append(nn.Sequential(*_conv(inside, channels, 2), nn.ReLU(inplace=True), *blocks))
            inside = channels
        self.stages = nn.Sequential(*stages)
        self.pool = nn.Conv2d(inside, inside, (height // step, width // step), groups=inside, bias=False)
        self.num_features = self.head_hidden_size = inside
        self.num_classes = num_classes
        self.classifier = nn.Linear(inside, num_classes) if num_classes else nn.Identity()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which layer a parameter is of, as timm asks for layer-wise rates: a layer is a stage."""
        return {"stem": r"^stages\.0", "blocks": [(r"^stages\.(\d+)", None), (r"^pool|^classifier", (99999,))]}

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the last feature map."""
        features: Tensor = self.stages(x)
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last feature map -> features (B, F), or logits."""
        x = self.pool(x).flatten(1)
        return x if pre_logits else self.classifier(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> features (B, F), or logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


default_cfgs = generate_default_cfgs(
    {
        "glyphnet": {
            "num_classes": 0,
            "input_size": (1, 32, 32),
            "fixed_input_size": True,
            "pool_size": None,
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "mean": (0.5,),
            "std": (0.5,),
            "first_conv": "stages.0.0",
            "classifier": "classifier",
        }
    }
)


@register
def glyphnet(pretrained: bool = False, **kwargs: Any) -> GlyphNet:
    """2 million parameters; 32 x 32 grey pictures unless told otherwise."""
    model: GlyphNet = build_model_with_cfg(GlyphNet, "glyphnet", pretrained, **kwargs)
    return model
