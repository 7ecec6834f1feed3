"""The vision transformers of the WebFace42M recipes, with names and shapes of InsightFace's published weights."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_pfc.models.embedder import IMAGE_SIZE, Embedder, face_cfg, out_of_autocast, register

__all__ = ["FaceViT"]


class FaceViT(Embedder):
    """ViT without a class token: all tokens, side by side, go through two linear layers with batch norm.

    A state dict of InsightFace's ``arcface_torch`` loads unchanged. The blocks are timm's, with ReLU6, without bias on
    query, key and value.

    ``mask_ratio`` masks that share of the tokens in training: they skip the blocks and come back as one learned token.
    InsightFace and PLSC read the option only as a switch and always mask 0.1, so the published "mask_005" models were
    trained with 0.1; here the number counts, and a recipe that means to repeat them says 0.1.

    Args:
        embed_dim: width of a token.
        depth: number of blocks.
        num_heads: number of attention heads; divides ``embed_dim``.
        embedding_dim: width of the embedding; published: 512.
        img_size: side or (height, width) of the images; published: 112. It decides the number of tokens.
        patch_size: side of a patch; published: 9. Pixels beyond the last whole patch are not seen (4 of 112).
        mlp_ratio: width of a block's MLP over ``embed_dim``.
        in_chans: 3, or 1 for grayscale.
        num_classes: width of a linear classifier behind the embedding; 0 is none.
        mask_ratio: share of the tokens masked in training, in [0, 1).
        drop_path_rate: stochastic depth of the last block; the others grow up to it linearly.
        drop_rate: dropout behind the position embedding and in the blocks.
        attn_drop_rate: dropout on the attention weights.
        grad_checkpointing: compute the blocks' activations again in the backward pass, as recipes of larger ones do.

    Raises:
        ValueError: for an argument out of range, and in ``forward`` for images of another size than ``img_size``.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int = 8,
        embedding_dim: int = 512,
        img_size: int | tuple[int, int] = IMAGE_SIZE,
        patch_size: int = 9,
        mlp_ratio: float = 4.0,
        in_chans: int = 3,
        num_classes: int = 0,
        mask_ratio: float = 0.0,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__(embedding_dim=embedding_dim, img_size=img_size, in_chans=in_chans, num_classes=num_classes)
        if min(self.img_size) < patch_size:
            raise ValueError(f"FaceViT(img_size={img_size!r}, patch_size={patch_size}): no patch fits into the image.")
        if not 0.0 <= mask_ratio < 1.0:
            raise ValueError(f"FaceViT(mask_ratio={mask_ratio!r}): mask_ratio must lie in [0, 1).")
        self.mask_ratio = mask_ratio
        self.grad_checkpointing = grad_checkpointing
        self.patch_embed = PatchEmbed(self.img_size, patch_size, in_chans, embed_dim)
        tokens = self.patch_embed.num_patches
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, embed_dim))
        # Trained only where masks reach it: DDP refuses a parameter without a gradient.
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim), requires_grad=mask_ratio > 0)
        self.pos_drop = nn.Dropout(drop_rate)
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=False,
                proj_drop=drop_rate,
                attn_drop=attn_drop_rate,
                drop_path=drop_path_rate * i / max(depth - 1, 1),
                act_layer=nn.ReLU6,
                norm_layer=nn.LayerNorm,
            )
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.feature = nn.Sequential(
            nn.Linear(embed_dim * tokens, embed_dim, bias=False),
            nn.BatchNorm1d(embed_dim, eps=2e-5),
            nn.Linear(embed_dim, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim, eps=2e-5),
        )
        self.feature_info = [
            {"num_chs": embed_dim, "reduction": patch_size, "module": f"blocks.{i}"} for i in range(depth)
        ]
        self.reset_classifier(num_classes)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> (B, embed_dim, H', W'), one column a patch, after the last layer norm."""
        return self._to_map(self._tokens(x))

    def embed(self, features: Tensor) -> Tensor:
        """(B, embed_dim, H', W') -> (B, embedding_dim)."""
        return out_of_autocast(self.feature, features.flatten(2).transpose(1, 2).flatten(1))

    def _tokens(self, x: Tensor) -> Tensor:
        self._check_input(x)
        x = self.pos_drop(self.patch_embed(x) + self.pos_embed)
        kept = None
        if self.training and self.mask_ratio > 0:
            kept = self._draw_kept(x)
            x = x.gather(1, kept[:, :, None].expand(-1, -1, x.shape[2]))
        for block in self.blocks:
            x = self._run(block, x)
        x = out_of_autocast(self.norm, x)
        if kept is not None:
            every = self.mask_token.to(x.dtype).expand(x.shape[0], self.pos_embed.shape[1], -1)
            x = every.scatter(1, kept[:, :, None].expand_as(x), x)
        return x

    def _draw_kept(self, x: Tensor) -> Tensor:
        """(B, n) int64: for each image its own ``n = floor(tokens * (1 - mask_ratio))`` tokens that stay, at random."""
        tokens = x.shape[1]
        count = max(int(tokens * (1 - self.mask_ratio)), 1)
        return torch.rand(x.shape[0], tokens, device=x.device).argsort(1)[:, :count]

    def _to_map(self, tokens: Tensor) -> Tensor:
        height, width = self.patch_embed.grid_size
        return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], height, width)

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            y: Tensor = checkpoint(block, x, use_reentrant=False)
        else:
            y = block(x)
        return y

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Tokens behind the blocks in ``indices`` (timm's interface), "NCHW" maps or "NLC" lists; nothing is masked."""
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"forward_intermediates(output_fmt={output_fmt!r}): it must be 'NCHW' or 'NLC'.")
        wanted, last = feature_take_indices(len(self.blocks), indices)
        self._check_input(x)
        x = self.pos_drop(self.patch_embed(x) + self.pos_embed)
        found: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            if stop_early and i > last:
                break
            x = self._run(block, x)
            if i in wanted:
                tokens = self.norm(x) if norm else x
                found.append(self._to_map(tokens) if output_fmt == "NCHW" else tokens)
        return found if intermediates_only else (self._to_map(self.norm(x)), found)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the blocks, norm and embedding layers that ``indices`` do not need (timm's interface)."""
        wanted, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()  # type: ignore[assignment]
        if prune_head:
            self.feature = nn.Identity()  # type: ignore[assignment]
            self.reset_classifier(0)
        return list(wanted)

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay should leave alone (timm's interface)."""
        return {"pos_embed", "mask_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which layer a parameter belongs to, for layer-wise learning rates (timm's interface)."""
        return {
            "stem": r"^(?:pos_embed|mask_token|patch_embed)",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^(?:norm|feature)", (99999,))],
        }


SIZES = {
    "tiny": {"embed_dim": 256, "depth": 12},
    "small": {"embed_dim": 512, "depth": 12},
    "base": {"embed_dim": 512, "depth": 24},
    "large": {"embed_dim": 768, "depth": 24},
    "huge": {"embed_dim": 1024, "depth": 48},
}

default_cfgs = generate_default_cfgs({f"face_vit_{size}": face_cfg(first_conv="patch_embed.proj") for size in SIZES})


def _create(size: str, pretrained: bool, kwargs: dict[str, Any]) -> FaceViT:
    model: FaceViT = build_model_with_cfg(
        FaceViT,
        f"face_vit_{size}",
        pretrained,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **(SIZES[size] | kwargs),
    )
    return model


@register
def face_vit_tiny(pretrained: bool = False, **kwargs: Any) -> FaceViT:
    """InsightFace's ``vit_t``."""
    return _create("tiny", pretrained, kwargs)


@register
def face_vit_small(pretrained: bool = False, **kwargs: Any) -> FaceViT:
    """InsightFace's ``vit_s``."""
    return _create("small", pretrained, kwargs)


@register
def face_vit_base(pretrained: bool = False, **kwargs: Any) -> FaceViT:
    """InsightFace's ``vit_b``; its recipes recompute activations (``set_grad_checkpointing``)."""
    return _create("base", pretrained, kwargs)


@register
def face_vit_large(pretrained: bool = False, **kwargs: Any) -> FaceViT:
    """InsightFace's ``vit_l``; its recipes recompute activations (``set_grad_checkpointing``)."""
    return _create("large", pretrained, kwargs)


@register
def face_vit_huge(pretrained: bool = False, **kwargs: Any) -> FaceViT:
    """InsightFace's ``vit_h``; its recipes recompute activations (``set_grad_checkpointing``)."""
    return _create("huge", pretrained, kwargs)
