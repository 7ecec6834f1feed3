"""The vision transformers of InsightFace, LVFace and CVLface: names that our FaceViT shares, and their sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_PARTS = re.compile(
    r"pos_embed|mask_token|patch_embed\.proj\.(weight|bias)|norm\.(weight|bias)"
    r"|feature\.(0|2)\.weight|feature\.(1|3)\.(weight|bias|running_mean|running_var|num_batches_tracked)"
    r"|blocks\.\d+\.(norm1|norm2|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)|blocks\.\d+\.attn\.qkv\.weight"
)
_NEEDED = ("pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "feature.0.weight", "feature.2.weight")
_MASK = "mask_token"


@dataclass(frozen=True)
class ViTSize:
    """What the shapes tell of such a network; the number of attention heads is not among it.

    Attributes:
        width: of a token.
        depth: number of blocks.
        patch: side of a patch.
        mlp_ratio: width of a block's MLP over ``width``.
        tokens: patches of a picture.
    """

    width: int
    depth: int
    patch: int
    mlp_ratio: int
    tokens: int


def is_face_vit(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of such a network and no others (one with relative positions has more)."""
    return all(name in tensors for name in _NEEDED) and all(_PARTS.fullmatch(name) for name in tensors)


def size_of(tensors: Mapping[str, Tensor]) -> ViTSize:
    """Of a network that :func:`is_face_vit`."""
    width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
    blocks = {int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")}
    mlp_ratio = tensors["blocks.0.mlp.fc1.weight"].shape[0] // width
    return ViTSize(width, len(blocks), patch, mlp_ratio, tensors["pos_embed"].shape[1])


def with_mask_token(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With the token that stands for masked ones in training, which theirs leaves out where it masks none."""
    width = tensors["pos_embed"].shape[2]
    return {_MASK: torch.zeros(1, 1, width, dtype=tensors["pos_embed"].dtype), **tensors}


def without_mask_token(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The other way."""
    return {name: tensor for name, tensor in tensors.items() if name != _MASK}
