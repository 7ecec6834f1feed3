"""The further losses once more: one process, the whole matrix of cosines, written from the papers' formulas alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_pfc import losses as L
from lightning_pfc.keyed_random.uniform import keyed_normal
from tests.reference import falling_cosine


@dataclass
class Batch:
    """What a formula may look at: all cosines (B, K), the column of each row's target, and the embeddings' norms."""

    cosine: Tensor
    target: Tensor
    norms: Tensor
    step: int
    seed: int
    state: dict[str, Tensor]
    learned: dict[str, Tensor]
    onehot: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.onehot = F.one_hot(self.target, self.cosine.shape[1]).bool()

    @property
    def own(self) -> Tensor:
        return self.cosine[self.onehot]


Formula = Callable[[Any, Batch], Tensor]


def softmax_mean(batch: Batch, target_logit: Tensor, negatives: Tensor) -> Tensor:
    logits = negatives.masked_fill(batch.onehot, 0.0).masked_scatter(batch.onehot, target_logit)
    return F.cross_entropy(logits, batch.target)


def acos(cosine: Tensor) -> Tensor:
    return torch.acos(cosine.clamp(-1 + 1e-7, 1 - 1e-7))


def adaface(loss: L.AdaFace, b: Batch) -> Tensor:
    norms = b.norms.detach().clamp(0.001, 100)
    b.state["mean"] = 0.99 * b.state["mean"] + 0.01 * norms.mean()
    b.state["std"] = 0.99 * b.state["std"] + 0.01 * norms.std()
    z = ((norms - b.state["mean"]) / (b.state["std"] + 1e-3) * loss.h).clamp(-1, 1)
    theta = (acos(b.own) - loss.margin * z).clamp(1e-3, math.pi - 1e-3)
    value = theta.cos() - (loss.margin + loss.margin * z)
    if loss.margin_grad == "straight_through":
        value = b.own + (value - b.own).detach()
    return softmax_mean(b, loss.scale * value, loss.scale * b.cosine)


def magface(loss: L.MagFace, b: Batch) -> Tensor:
    a = b.norms.clamp(loss.lower_norm, loss.upper_norm)
    share = (a - loss.lower_norm) / (loss.upper_norm - loss.lower_norm)
    margin = loss.lower_margin + (loss.upper_margin - loss.lower_margin) * share
    value = loss.scale * torch.cos(acos(b.own) + margin)
    g = 1 / a + a / loss.upper_norm**2
    return softmax_mean(b, value, loss.scale * b.cosine) + loss.regularizer * g.mean()


def curricularface(loss: L.CurricularFace, b: Batch) -> Tensor:
    b.state["t"] = 0.99 * b.state["t"] + 0.01 * b.own.detach().mean()
    bar = torch.cos(acos(b.own) + loss.margin)
    hard = b.cosine > bar.detach()[:, None]
    negatives = torch.where(hard, b.cosine * (b.state["t"] + b.cosine), b.cosine)
    return softmax_mean(b, loss.scale * bar, loss.scale * negatives)


def mvsoftmax(loss: L.MVSoftmax, b: Batch) -> Tensor:
    bar = b.own - loss.margin if loss.margin_type == "additive" else torch.cos(acos(b.own) + loss.margin)
    hard = (b.cosine > bar.detach()[:, None]).double()
    h = (loss.hard_weight - 1) * ((b.cosine + 1) if loss.weighting == "adaptive" else 1.0)
    return softmax_mean(b, loss.scale * bar, loss.scale * (b.cosine + h * hard))


def elasticface(loss: L.ElasticFace, b: Batch) -> Tensor:
    index = torch.arange(len(b.own))
    margins = (loss.margin + loss.std * keyed_normal(b.seed, torch.tensor(b.step), index)).double()
    if loss.plus:
        ascending = sorted(margins.tolist())
        ranks = [sum(other > mine for other in b.own.tolist()) for mine in b.own.tolist()]
        margins = torch.tensor([ascending[rank] for rank in ranks], dtype=torch.float64)
    value = b.own - margins if loss.margin_type == "additive" else torch.cos(acos(b.own) + margins)
    return softmax_mean(b, loss.scale * value, loss.scale * b.cosine)


def sphereface2(loss: L.SphereFace2, b: Batch) -> Tensor:
    g = 2 * ((b.cosine + 1) / 2) ** loss.power - 1
    bias = b.learned["bias"]
    positive = F.softplus(-(loss.scale * (g[b.onehot] - loss.margin) + bias))
    negative = F.softplus(loss.scale * (g + loss.margin) + bias).masked_fill(b.onehot, 0.0).sum(1)
    return (loss.weight * (loss.balance * positive + (1 - loss.balance) * negative) / loss.scale).mean()


def uniface(loss: L.UniFace, b: Batch) -> Tensor:
    threshold = b.learned["threshold"]
    positive = torch.log1p(torch.exp(-(loss.scale * (b.own - loss.margin) - threshold)))
    negative = torch.log1p(torch.exp(loss.scale * b.cosine - threshold)).masked_fill(b.onehot, 0.0).sum(1)
    return (positive + loss.balance * negative).mean()


def circle(loss: L.Circle, b: Batch) -> Tensor:
    m = loss.margin
    negatives = loss.scale * F.relu(b.cosine.detach() + m) * (b.cosine - m)
    positive = loss.scale * F.relu(1 + m - b.own.detach()) * (b.own - (1 - m))
    negatives = negatives.masked_fill(b.onehot, -math.inf)
    return torch.log1p(torch.exp(torch.logsumexp(negatives, 1) - positive)).mean()


def adacos(loss: L.AdaCos, b: Batch) -> Tensor:
    scale = b.state["scale"].clone()
    value = softmax_mean(b, scale * b.own, scale * b.cosine)
    if loss.dynamic:
        average = torch.exp(scale * b.cosine.detach()).masked_fill(b.onehot, 0.0).sum(1).mean()
        theta = acos(b.own.detach()).median()
        b.state["scale"] = average.log() / math.cos(min(math.pi / 4, theta.item()))
    return value


def warmup(loss: L.MarginWarmup, b: Batch) -> Tensor:
    share = min(max((b.step - loss.start) / loss.steps, 0.0), 1.0)
    inner = loss.loss
    if isinstance(inner, L.CurricularFace):
        return curricularface(L.CurricularFace(scale=inner.scale, margin=inner.margin * share), b)
    assert isinstance(inner, L.SphereFace)
    value = falling_cosine((1 + (inner.margin - 1) * share) * acos(b.own))
    return softmax_mean(b, inner.scale * value, inner.scale * b.cosine)


def subcenter(loss: L.SubCenterArcFace, b: Batch) -> Tensor:
    return softmax_mean(b, loss.scale * torch.cos(acos(b.own) + loss.margin), loss.scale * b.cosine)


def vpl(loss: L.VPL, b: Batch) -> Tensor:
    return softmax_mean(b, loss.scale * torch.cos(acos(b.own) + loss.margin), loss.scale * b.cosine)


def dsoftmax(loss: L.DSoftmax, b: Batch) -> Tensor:
    intra = torch.log(1 + math.exp(loss.scale * loss.end_point) / torch.exp(loss.scale * b.own))
    inter = torch.log(1 + torch.exp(loss.scale * b.cosine).masked_fill(b.onehot, 0.0).sum(1))
    return (intra + inter).mean()


FORMULAS: dict[str, Formula] = {
    "AdaFace": adaface,
    "MagFace": magface,
    "CurricularFace": curricularface,
    "MVSoftmax": mvsoftmax,
    "ElasticFace": elasticface,
    "SphereFace2": sphereface2,
    "UniFace": uniface,
    "Circle": circle,
    "AdaCos": adacos,
    "MarginWarmup": warmup,
    "SubCenterArcFace": subcenter,
    "VPL": vpl,
    "DSoftmax": dsoftmax,
}


def cosines(x: Tensor, weight: Tensor, centers: int) -> Tensor:
    """(B, K) cosines; with several centers a class, of the nearest one."""
    rows = weight.reshape(-1, x.shape[1])
    every = F.normalize(x) @ F.normalize(rows).t()
    return every.reshape(len(x), -1, centers).amax(2)


def mixed_with_memory(
    loss: L.VPL, x: Tensor, weight: Tensor, labels: Tensor, step: int, memory: dict[int, tuple[int, Tensor]]
) -> Tensor:
    """The centers of a step, class by class; then the batch's embeddings are put in the memory."""
    rows = []
    for j, w in enumerate(F.normalize(weight)):
        seen, feature = memory.get(j, (-1000, w.detach()))
        fresh = step + 1 > loss.start and step - seen <= loss.lifetime
        rows.append((1 - loss.share) * w + loss.share * feature if fresh else w)
    for label, row in zip(labels.tolist(), F.normalize(x.detach()), strict=True):
        memory[label] = (step, row)
    return torch.stack(rows)


def twin_loss(
    loss: L.Loss, x: Tensor, weight: Tensor, labels: Tensor, classes: Tensor | None,
    step: int, seed: int, state: dict[str, Tensor], learned: dict[str, Tensor], memory: dict[int, tuple[int, Tensor]],
) -> Tensor:  # fmt: skip
    """Mean loss of the batch over ``classes`` (all if None); moves ``state`` on."""
    if isinstance(loss, L.VPL):
        weight = mixed_with_memory(loss, x, weight, labels, step, memory)
    if classes is not None:
        weight, labels = weight[classes], torch.searchsorted(classes, labels)
    cosine = cosines(x, weight, loss.num_centers)
    return FORMULAS[type(loss).__name__](loss, Batch(cosine, labels, x.norm(dim=1), step, seed, state, learned))
