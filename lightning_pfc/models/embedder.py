"""What the face backbones have in common: they end in an embedding of their own, and are models of timm otherwise."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from timm.layers import to_2tuple
from timm.models import register_model
from torch import Tensor, nn

IMAGE_SIZE = 112  # of the published face models
Entrypoint = TypeVar("Entrypoint", bound=Callable[..., nn.Module])
register: Callable[[Entrypoint], Entrypoint] = register_model  # with the types that timm's own lacks
MEAN = STD = (0.5, 0.5, 0.5)  # pixels are mapped to [-1, 1]


class Embedder(nn.Module):
    """A timm model whose features before the classifier are a finished embedding, not a pooled feature map.

    ``timm.create_model(name, num_classes=0)`` gives the embedding, (B, embedding_dim): the layers behind the feature
    map (linear, batch norm) belong to the published weights, so a head takes the output as it is, with no neck between.
    ``num_classes > 0`` puts timm's usual linear ``classifier`` behind it.

    Attributes:
        embedding_dim: width of the embedding; also ``num_features`` and ``head_hidden_size``, as timm calls it.
        img_size: (height, width) that the embedding layers were built for.
        num_classes: width of the classifier, 0 for none.
        feature_info: channels and stride of each feature map, for ``features_only=True``.
        grad_checkpointing: whether the body's activations are computed anew in the backward pass.
    """

    feature_info: list[dict[str, Any]]

    def __init__(self, *, embedding_dim: int, img_size: int | tuple[int, int], in_chans: int, num_classes: int) -> None:
        super().__init__()
        name = type(self).__name__
        for argument, value, least in (
            ("embedding_dim", embedding_dim, 1),
            ("in_chans", in_chans, 1),
            ("num_classes", num_classes, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}({argument}={value!r}): {argument} must be an integer of at least {least}.")
        height, width = to_2tuple(img_size)
        if not all(isinstance(side, int) and side > 0 for side in (height, width)):
            raise ValueError(f"{name}(img_size={img_size!r}): img_size must be one or two positive integers.")
        self.embedding_dim = self.num_features = self.head_hidden_size = embedding_dim
        self.img_size = (height, width)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.grad_checkpointing = False

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the last feature map, (B, C', H', W')."""

    @abstractmethod
    def embed(self, features: Tensor) -> Tensor:
        """The last feature map -> embeddings, (B, embedding_dim)."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last feature map -> embeddings, and class logits if there is a classifier and not ``pre_logits``."""
        x = self.embed(x)
        logits: Tensor = x if pre_logits else self.classifier(x)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] -> embeddings (B, embedding_dim), or logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The linear classifier, or ``nn.Identity`` without classes (it is made by :meth:`reset_classifier`)."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the model a new linear classifier, or none at 0. ``global_pool`` cannot change: it is in the weights."""
        if global_pool not in (None, ""):
            raise ValueError(
                f"reset_classifier(global_pool={global_pool!r}): the pooling of {type(self).__name__} is part of its "
                "embedding layers; leave global_pool out, or use features_only=True for bare feature maps."
            )
        self.num_classes = num_classes
        self.classifier = nn.Linear(self.embedding_dim, num_classes) if num_classes > 0 else nn.Identity()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute the body's activations in the backward pass."""
        self.grad_checkpointing = enable

    def _check_input(self, x: Tensor) -> None:
        """Say what to change where torch would say "mat1 and mat2 shapes cannot be multiplied"."""
        if x.ndim != 4 or x.shape[1] != self.in_chans or not self._accepts(x.shape[2], x.shape[3]):
            raise ValueError(
                f"{type(self).__name__} got images of shape {tuple(x.shape)}, but was built for "
                f"(B, {self.in_chans}, {self.img_size[0]}, {self.img_size[1]}); pass in_chans and img_size to "
                "timm.create_model, or resize the images."
            )

    def _accepts(self, height: int, width: int) -> bool:
        return (height, width) == self.img_size


def out_of_autocast(module: nn.Module, x: Tensor) -> Tensor:
    """Apply ``module`` in the dtype of its own weights, whatever autocast says.

    The last layers decide the angles that the loss works on: the published models keep them in float32 under mixed
    precision, and so does this. Half-precision weights (``model.bfloat16()``) still work as they are.
    """
    with nullcontext() if x.is_meta else torch.autocast(device_type=x.device.type, enabled=False):
        weight = next(module.parameters(), x)  # an emptied module has none
        y: Tensor = module(x.to(weight.dtype))
        return y


def face_cfg(**kwargs: Any) -> dict[str, Any]:
    """What timm notes of a face model's input; there is no weight to download."""
    return {
        "num_classes": 0,
        "input_size": (3, IMAGE_SIZE, IMAGE_SIZE),
        "fixed_input_size": True,
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": MEAN,
        "std": STD,
        "classifier": "classifier",
        **kwargs,
    }
