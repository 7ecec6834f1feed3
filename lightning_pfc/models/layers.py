"""Which layer of a backbone each parameter is of, as timm counts them."""

from __future__ import annotations

from typing import Any

from timm.models import group_parameters
from torch import nn


def layers_of(backbone: nn.Module) -> dict[str, int]:
    """The layer of each parameter by its name, from 0, which is next to the pictures.

    Args:
        backbone: a model of timm, or one with a ``group_matcher`` as they have; compiled or not.

    Raises:
        ValueError: it does not tell.
    """
    plain: Any = getattr(backbone, "_orig_mod", backbone)
    matcher = getattr(plain, "group_matcher", None)
    if not callable(matcher):
        raise ValueError(
            f"{type(plain).__name__} does not tell its layers, as models of timm do with group_matcher(). "
            "Give it one; or optimizer.backbone_lr_scale, which is one rate for the whole backbone."
        )
    layers: dict[str, int] = group_parameters(plain, matcher(coarse=False), reverse=True)
    layer_of = {id(param): layers[name] for name, param in plain.named_parameters()}
    return {name: layer_of[id(param)] for name, param in backbone.named_parameters()}
