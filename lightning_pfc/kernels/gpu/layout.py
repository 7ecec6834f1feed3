"""How numbers lie that kernels are given: they reckon with rows side by side, and a view may have them elsewhere."""

from __future__ import annotations

from torch import Tensor


def side_by_side(x: Tensor) -> Tensor:
    """A matrix to read whose rows may be anywhere: copied only where the numbers of a row are apart."""
    return x if x.stride(1) == 1 else x.contiguous()


def written_rows(name: str, x: Tensor) -> Tensor:
    """A matrix to write whose rows may be anywhere.

    Raises:
        ValueError: where the numbers of a row are apart.
    """
    return x if x.shape[1] <= 1 or x.stride(1) == 1 else _refuse(name, x)


def written_whole(name: str, x: Tensor) -> Tensor:
    """A tensor to write that is contiguous.

    Raises:
        ValueError: where it is not.
    """
    return x if x.is_contiguous() else _refuse(name, x)


def _refuse(name: str, x: Tensor) -> Tensor:
    raise ValueError(
        f"{name} has shape {tuple(x.shape)} and strides {x.stride()}, and a kernel writes it in place; give a "
        "contiguous tensor."
    )
