"""Planted inputs of the softmax's operations: duplicates, padding, a row of zeros, a target that is nearly certain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_pfc.kernels.choice import planted


def numbers(device: torch.device, *shape: int) -> Tensor:
    """Numbers in [-1, 1) that look random, the same on every device and in every run."""
    count = torch.Size(shape).numel()
    place = torch.arange(count, device=device)
    return (((place * 40503 + 12829) % 65536).float() / 32768 - 1).view(shape)


def _case(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit rows x (37, 96), centers (120, 96), sampled rows (53,), targets (37, 2)."""
    x = torch.nn.functional.normalize(numbers(device, 37, 96))
    weight = numbers(device, 120, 96) * 3
    weight[11] = 0.0
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


@planted("exponentials_")
def _exponentials(device: torch.device) -> list[tuple[Any, ...]]:
    x, weight, index, targets = _case(device)
    scores = x @ torch.nn.functional.normalize(weight[index]).t()
    offsets = numbers(device, 53)
    offsets[50:] = -torch.inf
    kept = torch.zeros_like(scores, dtype=torch.bfloat16)
    return [(scores, kept, 64.0, 4.0, targets, offsets), (scores, torch.zeros_like(scores), 64.0, 4.0, targets, None)]


@planted("target_cosines")
def _target_cosines(device: torch.device) -> list[tuple[Any, ...]]:
    x, weight, index, targets = _case(device)
    return [(x, weight, index, targets, True), (x, weight, None, targets, False)]


@planted("target_gradients_")
def _target_gradients(device: torch.device) -> list[tuple[Any, ...]]:
    x, weight, index, targets = _case(device)
    grad = numbers(device, 37, 2)
    return [(x, weight, index, targets, grad, numbers(device, 37, 96), numbers(device, 53, 96), True)]
