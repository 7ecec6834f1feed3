"""Weights of a network for pictures of another size, or of another number of channels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor, nn

Fitted = tuple[Tensor, str]


def fitted(name: str, value: Tensor, target: Tensor, network: nn.Module, is_stem: bool) -> Fitted | None:
    """A tensor in the shape that a network has; None where there is no way.

    Args:
        name: of the tensor.
        value: as it is in the file.
        target: as it is in the network.
        network: tells how many patches a picture has.
        is_stem: whether it is the first convolution, which sees the channels of the pictures.

    Returns:
        The tensor, and what was done to it; nothing was where that is empty.
    """
    if value.shape == target.shape:
        return value, ""
    if value.dim() != target.dim():
        return None
    short = name.rpartition(".")[2]
    if short.startswith("pos_embed") and value.dim() == 3:
        return _positions(name, value, target, network)
    if short == "relative_position_bias_table":
        return _relative(name, value, target)
    if is_stem and value.dim() == 4 and value.shape[0] == target.shape[0]:
        return _stem(name, value, target)
    return None


def _positions(name: str, value: Tensor, target: Tensor, network: nn.Module) -> Fitted | None:
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if grid is None or value.shape[2] != target.shape[2]:
        return None
    others = target.shape[1] - grid[0] * grid[1]  # tokens of no patch
    side = math.isqrt(max(0, value.shape[1] - others))
    if others < 0 or side < 1 or side * side != value.shape[1] - others:
        return None
    made = resample_abs_pos_embed(value.float(), list(grid), [side, side], num_prefix_tokens=others)
    return made.to(value.dtype), f"{name} interpolated from {side} x {side} to {grid[0]} x {grid[1]}"


def _relative(name: str, value: Tensor, target: Tensor) -> Fitted | None:
    old, new = math.isqrt(value.shape[0]), math.isqrt(target.shape[0])
    if old * old != value.shape[0] or new * new != target.shape[0] or value.shape[1:] != target.shape[1:]:
        return None
    table = value.float().t().reshape(1, -1, old, old)
    made = F.interpolate(table, size=(new, new), mode="bicubic", align_corners=False)
    return made.reshape(-1, new * new).t().to(value.dtype), f"{name} interpolated from {old} x {old} to {new} x {new}"


def _stem(name: str, value: Tensor, target: Tensor) -> Fitted:
    """Channels are summed into one, or repeated so that a grey picture gives what it gave."""
    said = []
    there, here = value.shape[1], target.shape[1]
    made = value.float()
    if there != here and here == 1:
        made = made.sum(1, keepdim=True)
        said.append(f"summed over {there} channels")
    elif there != here:
        made = made.repeat(1, -(-here // there), 1, 1)[:, :here] * (there / here)
        said.append(f"repeated from {there} to {here} channels")
    if made.shape[2:] != target.shape[2:]:
        with torch.no_grad():
            made = resample_patch_embed(made, list(target.shape[2:]))
        said.append(f"resampled from {tuple(value.shape[2:])} to {tuple(target.shape[2:])}")
    return made.to(value.dtype), f"{name} {' and '.join(said)}"
