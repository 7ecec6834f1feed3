"""Losses: frozen, validated, keyword-only objects that own everything about a loss but the sums over the classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_pfc.losses.adacos import AdaCos
from lightning_pfc.losses.adaface import AdaFace
from lightning_pfc.losses.arcface import ArcFace
from lightning_pfc.losses.base import Loss
from lightning_pfc.losses.batch_info import BatchInfo, LogitSums, State
from lightning_pfc.losses.circle import Circle
from lightning_pfc.losses.combined import CombinedMargin
from lightning_pfc.losses.cosface import CosFace
from lightning_pfc.losses.curricularface import CurricularFace
from lightning_pfc.losses.dsoftmax import DSoftmax
from lightning_pfc.losses.elasticface import ElasticFace
from lightning_pfc.losses.magface import MagFace
from lightning_pfc.losses.mvsoftmax import MVSoftmax
from lightning_pfc.losses.normface import NormFace
from lightning_pfc.losses.softmax import Softmax
from lightning_pfc.losses.sphereface import SphereFace
from lightning_pfc.losses.sphereface2 import SphereFace2
from lightning_pfc.losses.subcenter import SubCenterArcFace
from lightning_pfc.losses.uniface import UniFace
from lightning_pfc.losses.vpl import VPL
from lightning_pfc.losses.warmup import MarginWarmup
from lightning_pfc.names.renamed import renamed_names
from lightning_pfc.registry import from_config, registered_subclasses

__all__ = [
    "VPL",
    "AdaCos",
    "AdaFace",
    "ArcFace",
    "BatchInfo",
    "Circle",
    "CombinedMargin",
    "CosFace",
    "CurricularFace",
    "DSoftmax",
    "ElasticFace",
    "LogitSums",
    "Loss",
    "MVSoftmax",
    "MagFace",
    "MarginWarmup",
    "NormFace",
    "Softmax",
    "SphereFace",
    "SphereFace2",
    "State",
    "SubCenterArcFace",
    "UniFace",
    "loss_from_config",
    "loss_names",
]


def loss_names() -> list[str]:
    """Every loss by its class name, subclasses written elsewhere and already imported included."""
    return sorted(cls.__name__ for cls in registered_subclasses(Loss).values())


def loss_from_config(config: str | Mapping[str, Any] | Loss) -> Loss:
    """A loss from its name, or from a mapping with ``name`` and its arguments (what ``Loss.to_config`` gives).

    Args:
        config: a loss (returned as it is), a name in any case, or ``{"name": "ArcFace", "margin": 0.4}``.

    Raises:
        ValueError: for an unknown name, saying what exists.
        TypeError: for an argument that the loss does not have.

    Example:
        >>> loss_from_config({"name": "cosface", "margin": 0.35}).margin
        0.35
    """
    return from_config(Loss, config)


__getattr__ = renamed_names(
    __name__,
    {"Rows": "lightning_pfc.losses:BatchInfo"},
)
