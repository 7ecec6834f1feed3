"""PLSC, which is written in Paddle: read without it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_pfc.interchange.files import as_matrix, as_tensors, describe
from lightning_pfc.interchange.imported import (
    HEAD,
    MOMENTUM,
    Imported,
    check_alike,
    check_ranges,
    files_by_rank,
    momenta_beside,
    take_backbone,
)
from lightning_pfc.interchange.plain_pickles import read_arrays

_NAMES = "StructuredToParameterName@@"  # Paddle's own list, beside the tensors
_THEIR_OBJECTS = ("paddle", "plsc")  # schedules and clipping in the files of optimizers
_BATCH_NORM = {"_mean": "running_mean", "_variance": "running_var"}


def plsc(source: Path) -> Imported:
    """PLSC: ``PREFIX.pdparams``, and ``PREFIX_rankN.pdparams`` and ``.pdopt`` of a head on several ranks.

    Args:
        source: the prefix (``output/latest``), the first file, or a folder that holds one prefix.

    Raises:
        OSError, ValueError: naming the file, and what was expected.
    """
    prefix = _prefix(source)
    heads = files_by_rank(prefix.parent, re.escape(prefix.name) + r"_rank(\d+)\.pdparams")
    found = Imported()
    main = prefix.with_name(f"{prefix.name}.pdparams")
    if not heads and not main.exists():
        raise FileNotFoundError(f"{main} is not there.")
    if main.exists():
        for name, tensor in _tensors(main).items():
            if name == HEAD:
                found.parts[HEAD] = [as_matrix(tensor, f"{name} in {main}")]
            else:
                take_backbone(found, {_torch_name(name): _torch_layout(name, tensor)}, str(main))
    if heads:
        found.parts[HEAD] = [_head(path) for path in heads]
        check_ranges(found.parts[HEAD], heads)
        _take_momentum(found, heads)
    return found


def _prefix(source: Path) -> Path:
    if source.is_dir():
        names = {re.sub(r"_rank\d+$", "", path.stem) for path in source.glob("*.pdparams")}
        if len(names) != 1:
            which = f"those of {', '.join(sorted(names)[:6])}: give one, {source}/NAME" if names else "none"
            raise ValueError(f"{source} should hold the .pdparams files of one checkpoint, and has {which}.")
        return source / names.pop()
    if source.is_file() and source.suffix != ".pdparams":
        raise ValueError(f"{source} should be a .pdparams file of PLSC, the prefix of several, or their folder.")
    return source.with_suffix("") if source.suffix == ".pdparams" else source


def _tensors(path: Path) -> dict[str, Tensor]:
    content = read_arrays(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} should hold tensors by name, and is {describe(content)}.")
    return as_tensors({key: _value(each) for key, each in content.items() if key != _NAMES}, str(path))


def _value(value: Any) -> Any:
    """A tensor of Paddle's is an array, or its name and an array."""
    return value[1] if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Tensor) else value


def _torch_name(name: str) -> str:
    part, _, kind = name.rpartition(".")
    return f"{part}.{_BATCH_NORM.get(kind, kind.removeprefix('_'))}" if part else kind


def _torch_layout(name: str, tensor: Tensor) -> Tensor:
    """Paddle's linear layers have (in, out)."""
    return tensor.t().contiguous() if tensor.dim() == 2 and name.endswith("weight") else tensor


def _head(path: Path) -> Tensor:
    tensors = _tensors(path)
    if list(tensors) != [HEAD]:
        raise ValueError(f"{path} should hold {HEAD} alone, and is {describe(tensors)}.")
    return as_matrix(tensors[HEAD], f"{HEAD} in {path}")


def _take_momentum(found: Imported, heads: Sequence[Path]) -> None:
    paths = [path.with_suffix(".pdopt") for path in heads]
    if not momenta_beside(paths):
        return
    momenta = [_momentum(read_arrays(path, own=_THEIR_OBJECTS)) for path in paths]
    if any(momentum is None for momentum in momenta):
        found.notes.append("the optimizer's files hold no momentum of the head")
        return
    found.parts[MOMENTUM] = [momentum for momentum in momenta if momentum is not None]
    check_alike(found.parts[MOMENTUM], found.parts[HEAD], paths)


def _momentum(content: Any) -> Tensor | None:
    """Of the one parameter of a rank's file."""
    states = content.get("state") if isinstance(content, Mapping) else None
    if not isinstance(states, Mapping) or len(states) != 1:
        return None
    [state] = states.values()
    value = _value(state.get("exp_avg")) if isinstance(state, Mapping) else None
    return value if isinstance(value, Tensor) and "exp_avg_sq" not in state else None
