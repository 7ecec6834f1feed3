"""What somebody's file holds is weights: plain tensors of finite floats."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_pfc.interchange.imported import HEAD

_OF_FLOATS = ("weight", "bias", "running_mean", "running_var")  # anything else may be an index or a counter
_PIECE = 1 << 22  # numbers looked at together


def why_no_weights(tensor: Tensor, of_floats: bool) -> str:
    """What is wrong with a tensor that is to be weights, and the way out; empty if nothing is.

    Args:
        tensor: of any kind.
        of_floats: whether it must hold floats; else it may be an index or a counter as well.
    """
    if tensor.is_meta or tensor.layout != torch.strided:
        what = "without values (meta)" if tensor.is_meta else f"of layout {tensor.layout}"
        return f"is a tensor {what}. Save it dense, with its values."
    if tensor.is_complex() or (of_floats and not tensor.is_floating_point()):
        return f"holds {tensor.dtype}, where weights are floats. Save it as floats; what was quantised, as it was."
    return ""


def all_finite(tensor: Tensor) -> bool:
    """Whether a strided tensor has neither NaN nor infinity; looked at in pieces."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    rows = tensor.reshape(1) if tensor.dim() == 0 else tensor
    step = max(1, _PIECE // max(1, rows[0].numel()))
    pieces = (rows[first : first + step] for first in range(0, len(rows), step))
    return all(bool(torch.isfinite(each if each.dtype.itemsize > 1 else each.float()).all()) for each in pieces)


def check_kinds(source: str | os.PathLike[str], parts: Mapping[str, Sequence[Tensor]]) -> None:
    """See that tensors are what a file of safetensors can hold and a module can take, before one is written.

    Args:
        source: of them, for messages.
        parts: by our names, each in the parts in which the peer keeps it.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, tensors in parts.items():
        if not name.isprintable():
            raise ValueError(f"{source}: the name {name!r} of a tensor has characters that are none. Rename it there.")
        for tensor in tensors:
            if wrong := why_no_weights(tensor, name.rpartition(".")[2] in _OF_FLOATS):
                raise ValueError(f"{source}: {name} {wrong}")
    if HEAD in parts and not sum(part.numel() for part in parts[HEAD]):
        raise ValueError(f"{source}: {HEAD} is empty, its shape is {tuple(parts[HEAD][0].shape)}.")


def check_finite(source: str | os.PathLike[str], name: str, part: Tensor, number: int) -> None:
    """See that nobody's diverged run goes on here.

    Args:
        source: of it, for messages.
        name: of the tensor.
        part: of it.
        number: of the part, from 0 on: of a head the rank.

    Raises:
        ValueError: it holds NaN or infinity.
    """
    if not all_finite(part):
        where = f" of rank {number}" if number else ""
        raise ValueError(
            f"{source}: {name}{where} holds NaN or infinity, so the run that wrote it had diverged. Give an earlier "
            "checkpoint."
        )
