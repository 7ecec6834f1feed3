"""Slow, obvious twins: one process, dense, written from the formulas alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_pfc import losses as L


def dense_target_logit(loss: L.Loss, cosine: Tensor) -> Tensor:
    """The margin on the target, written out again."""
    if isinstance(loss, L.CosFace):
        return loss.scale * (cosine - loss.margin)
    m1, m2, m3 = {
        L.ArcFace: lambda: (1.0, loss.margin, 0.0),
        L.SphereFace: lambda: (loss.margin, 0.0, 0.0),
        L.CombinedMargin: lambda: (loss.m1, loss.m2, loss.m3),
    }.get(type(loss), lambda: (None, None, None))()
    if m1 is None:
        return loss.scale * cosine
    theta = torch.acos(cosine.clamp(-1 + 1e-7, 1 - 1e-7))
    modified = (falling_cosine(m1 * theta + m2) if m1 > 1 else torch.cos(m1 * theta + m2)) - m3
    if loss.margin_grad == "straight_through":
        modified = cosine + (modified - cosine).detach()
    return loss.scale * modified


def falling_cosine(angle: Tensor) -> Tensor:
    """SphereFace's psi, arch by arch: the cosine of each, turned over where it would rise, set where one ended."""
    value = torch.full_like(angle, torch.nan)
    for k in range(64):
        arch = (angle >= k * math.pi) & (angle <= (k + 1) * math.pi)
        value = torch.where(arch, (-1) ** k * torch.cos(angle) - 2 * k, value)
    return value


def dense_loss(
    x: Tensor, weight: Tensor, labels: Tensor, loss: L.Loss, bias: Tensor | None = None, classes: Tensor | None = None
) -> Tensor:
    """Mean loss of a batch over ``classes`` (all if None): the whole matrix of logits, a one-hot mask, log_softmax."""
    if classes is not None:
        weight = weight[classes]
        bias = None if bias is None else bias[classes]
        labels = torch.searchsorted(classes, labels)
    if loss.normalize:
        x = x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)
        weight = weight / weight.norm(dim=1, keepdim=True).clamp(min=1e-12)
    cosine = x @ weight.t()
    if bias is not None:
        cosine = cosine + bias
    onehot = torch.nn.functional.one_hot(labels, weight.shape[0]).bool()
    negatives = cosine
    if loss.interclass_filter is not None:
        negatives = torch.where(cosine > loss.interclass_filter, torch.zeros_like(cosine), cosine)
    target = dense_target_logit(loss, cosine[onehot])
    logits = torch.where(onehot, torch.zeros_like(cosine), loss.scale * negatives)
    logits = logits.masked_scatter(onehot, target)
    logp = torch.log_softmax(logits, 1)
    smooth = loss.label_smoothing
    per_row = -(1 - smooth) * logp[onehot] - smooth * logp.mean(1)
    return per_row.mean()


def uneven_split(total: int, world_size: int) -> list[int]:
    """Different batch sizes by rank, all at least one, where possible."""
    weights = [r + 1 for r in range(world_size)]
    sizes = [max(1, math.floor(total * w / sum(weights))) for w in weights]
    sizes[-1] += total - sum(sizes)
    return sizes
