"""Necks: from the features of a backbone to the embedding."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

Neck = Callable[[int, int, float], nn.Module]


def _bn(in_features: int, embedding_dim: int, dropout: float) -> nn.Module:
    last = nn.BatchNorm1d(embedding_dim)
    last.weight.requires_grad_(False)  # the head normalises: a free scale per dimension would only drift
    return nn.Sequential(
        nn.BatchNorm1d(in_features), nn.Dropout(dropout), nn.Linear(in_features, embedding_dim, bias=False), last
    )


def _linear(in_features: int, embedding_dim: int, dropout: float) -> nn.Module:
    linear = nn.Linear(in_features, embedding_dim)
    return nn.Sequential(nn.Dropout(dropout), linear) if dropout else linear


def _none(in_features: int, embedding_dim: int, dropout: float) -> nn.Module:
    if in_features != embedding_dim:
        raise ValueError(
            f"embedding_dim={embedding_dim} differs from the {in_features} features of the backbone, which "
            "neck='none' passes on as they are; change embedding_dim, or take the neck 'bn' or 'linear'."
        )
    return nn.Dropout(dropout) if dropout else nn.Identity()


NECKS: dict[str, Neck] = {"bn": _bn, "linear": _linear, "none": _none}


def create_neck(name: str, in_features: int, embedding_dim: int, *, dropout: float = 0.0) -> nn.Module:
    """Features (B, F) -> embeddings (B, D).

    Args:
        name: ``"bn"``: batch norm, dropout, linear, batch norm with its weight fixed to one, as face recognition uses
            (the output layers of the ArcFace paper, arXiv:1801.07698, section 3.2, option E). ``"linear"``: dropout,
            linear; no batch statistics, so that ranks and batch sizes do not matter. ``"none"``: the features are the
            embedding.
        in_features: F.
        embedding_dim: D.
        dropout: probability, in [0, 1).

    Raises:
        ValueError: for an unknown name or a number out of range.
    """
    if name not in NECKS:
        raise ValueError(f"neck={name!r} does not exist; there are: {', '.join(NECKS)}.")
    if embedding_dim < 1:
        raise ValueError(f"embedding_dim={embedding_dim} must be at least 1.")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout={dropout} must lie in [0, 1).")
    return NECKS[name](in_features, embedding_dim, dropout)
