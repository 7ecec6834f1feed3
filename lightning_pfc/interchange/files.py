"""Files of ``torch.save`` and safetensors that somebody else has written: tensors and plain values, never code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_pfc.checkpoint.archive import check_archive, load_archive
from lightning_pfc.storage.regular import check_regular


def read_file(path: Path) -> Any:
    """What is in a file; large tensors stay there until they are touched.

    Raises:
        OSError: if it is no ordinary file.
        ValueError: if it is damaged, is of another kind, or holds something other than tensors and plain values.
    """
    size = check_regular(path).st_size
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        with path.open("rb") as file:
            check_archive(file, size)
        return load_archive(path, mmap=True)
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # of safetensors' own kinds
        raise ValueError(f"it is no safetensors file, or damaged ({error})") from error


def read_matrix(path: Path) -> Tensor:
    """A file that is one (rows, columns) tensor of floats.

    Raises:
        OSError, ValueError: as :func:`read_file`, and for anything else.
    """
    return as_matrix(read_file(path), str(path))


def as_matrix(value: Any, what: str) -> Tensor:
    """``value`` itself, if it is a tensor of floats with rows and columns.

    Raises:
        ValueError: saying what it is instead.
    """
    if isinstance(value, Tensor) and value.dim() == 2 and value.is_floating_point() and value.layout == torch.strided:
        return value.detach()
    found = describe(value)
    if isinstance(value, Tensor):
        found = f"{value.dtype} of shape {tuple(value.shape)}{'' if value.layout == torch.strided else ', sparse'}"
    raise ValueError(f"{what} should be floats of shape (classes, dimensions), and is {found}.")


def as_tensors(value: Any, what: str) -> dict[str, Tensor]:
    """A state dict: tensors by their names, with ``module.`` and ``_orig_mod.`` of wrappers left out.

    Raises:
        ValueError: if it is none, or two have one name.
    """
    if not isinstance(value, Mapping) or not value or not all(isinstance(each, Tensor) for each in value.values()):
        raise ValueError(f"{what} should be a state dict, tensors by name, and is {describe(value)}.")
    tensors: dict[str, Tensor] = {}
    for key, tensor in value.items():
        name = str(key)
        while name.startswith(("module.", "_orig_mod.")):
            name = name.removeprefix("module.").removeprefix("_orig_mod.")
        if name in tensors:
            raise ValueError(f"{what} has two tensors of one name, {name} and {key}. Save the one that is meant.")
        tensors[name] = tensor.detach()
    return tensors


def describe(value: Any) -> str:
    """A few words on what a file holds."""
    if isinstance(value, Mapping):
        names = ", ".join(map(str, list(value)[:6]))
        return f"a mapping with the keys {names}{', ...' if len(value) > 6 else ''}" if value else "an empty mapping"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
