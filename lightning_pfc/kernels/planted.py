"""Planted inputs of the softmax's operations: duplicates, padding, a row of zeros, a target that is nearly certain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_pfc.kernels.choice import planted
from lightning_pfc.kernels.targets import link_equal


def numbers(device: torch.device, *shape: int) -> Tensor:
    """Numbers in [-1, 1) that look random, the same on every device and in every run."""
    count = torch.Size(shape).numel()
    place = torch.arange(count, device=device)
    return (((place * 40503 + 12829) % 65536).float() / 32768 - 1).view(shape)


def _case(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit rows x (37, 96), centers (120, 96), sampled rows (53,), targets (37, 2)."""
    x = torch.nn.functional.normalize(numbers(device, 37, 96))
    weight = numbers(device, 120, 96) * 3
    weight[13] = 0.0
    index = torch.arange(53, device=device) * 2 + 1
    weight[index[5]] = x[3] * 2  # cosine 1
    targets = (torch.arange(74, device=device) * 7 % 53).view(37, 2)
    targets[3, 0] = 5
    targets[20:25] = 9
    targets[30] = -1
    return x, weight, index, targets


@planted("gather_normalize_round")
def _unit_rows(device: torch.device) -> list[tuple[Any, ...]]:
    _, weight, index, _ = _case(device)
    return [(weight, index, torch.bfloat16, True), (weight.bfloat16(), None, torch.float32, True)]


@planted("project_rows_")
def _project_rows(device: torch.device) -> list[tuple[Any, ...]]:
    _, weight, index, _ = _case(device)
    grad = numbers(device, 53, 96)
    grad[6] *= 1e-12  # of the row of zeros, which is divided by 1e-12
    every = numbers(device, 120, 96)
    every[13] = 0.0
    return [(grad, weight, index), (every, weight.bfloat16(), None)]


@planted("exponentials_")
def _exponentials(device: torch.device) -> list[tuple[Any, ...]]:
    x, weight, index, targets = _case(device)
    scores = x @ torch.nn.functional.normalize(weight[index]).t()
    offsets = numbers(device, 53)
    offsets[50:] = -torch.inf
    kept = torch.zeros_like(scores, dtype=torch.bfloat16)
    part = scores[:, 20:].contiguous()
    return [
        (scores, kept, 64.0, 4.0, targets, offsets, 0),
        (part, torch.zeros_like(part), 64.0, 4.0, targets, None, 20),
    ]


@planted("target_cosines")
def _target_cosines(device: torch.device) -> list[tuple[Any, ...]]:
    x, weight, index, targets = _case(device)
    return [(x, weight, index, targets, True), (x, weight, None, targets, False)]


@planted("target_gradients_")
def _target_gradients(device: torch.device) -> list[tuple[Any, ...]]:
    x, weight, index, targets = _case(device)
    grad = numbers(device, 37, 2)
    both = (numbers(device, 37, 96), numbers(device, 53, 96), True, 0, None)
    part = (None, numbers(device, 21, 96), True, 20, link_equal(targets, kernels=()))
    return [(x, weight, index, targets, grad, *both), (x, weight, index, targets, grad, *part)]


@planted("link_equal")
def _link_equal(device: torch.device) -> list[tuple[Any, ...]]:
    return [(_case(device)[3],)]


@planted("unit_embeddings")
def _unit_embeddings(device: torch.device) -> list[tuple[Any, ...]]:
    x = numbers(device, 37, 96) * 5
    x[4] = 0.0
    return [(x,), (x.bfloat16(),)]


@planted("unit_embeddings_backward")
def _unit_embeddings_backward(device: torch.device) -> list[tuple[Any, ...]]:
    unit, grad, norms = _case(device)[0], numbers(device, 96, 37).t().contiguous(), numbers(device, 37).abs() + 0.5
    norms[4], norms[5] = 0.0, 1e-13
    grad[4:6] *= 1e-12
    return [(unit, norms, grad, None, torch.bfloat16), (unit, norms, grad, numbers(device, 37) * 1e-1, torch.float32)]


@planted("bad_rows")
def _bad_rows(device: torch.device) -> list[tuple[Any, ...]]:
    x, labels = numbers(device, 37, 96), torch.arange(37, device=device) * 3
    x[3, 7], x[5, 95], x[6] = torch.nan, -torch.inf, 1e30
    labels[8], labels[9] = -1, 100
    return [(x, labels, 100), (x.bfloat16(), labels[:, None].expand(-1, 2).contiguous(), 60)]


@planted("own_columns")
def _own_columns(device: torch.device) -> list[tuple[Any, ...]]:
    labels = torch.arange(300, device=device) * 7 % 211
    return [(labels, 50, 120), (labels.view(100, 3) - 5, 0, 200)]


@planted("pack_sums")
def _pack_sums(device: torch.device) -> list[tuple[Any, ...]]:
    sums = numbers(device, 300).abs() + 1.0
    return [(sums, numbers(device, 300, 2), 8.0), (sums.double(), numbers(device, 300, 1), 1.0)]


@planted("unpack_sums")
def _unpack_sums(device: torch.device) -> list[tuple[Any, ...]]:
    reduced = numbers(device, 3, 300).double().abs() * 1e3 + 1e-30
    return [(reduced, 2, torch.float32), (reduced, 1, torch.float32)]


@planted("margin_logits")
def _margin_logits(device: torch.device) -> list[tuple[Any, ...]]:
    cosine = numbers(device, 300)
    cosine[:4] = torch.tensor([1.0, -1.0, 0.999, -0.999], device=device)
    limit = 1.0 - 1e-7
    return [(cosine, 64.0, 0.8776, 0.4794, 0.1, limit, exact) for exact in (True, False)]


@planted("begin_gradients")
def _begin_gradients(device: torch.device) -> list[tuple[Any, ...]]:
    x, logsumexp, grad = _case(device)[0], numbers(device, 37).double() * 20 + 40, numbers(device, 37)
    sums = numbers(device, 37, 96) * 1e3
    logsumexp[6] = -1e30
    common = (logsumexp, grad, 64.0, 40.0)
    return [(x, sums, *common, torch.bfloat16), (x, None, *common, None), (x, sums, *common, torch.float32)]
