"""Giving a module the weights of a checkpoint, or saying in one line that they are of another architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_pfc.checkpoint.errors import CheckpointError


def load_weights(module: nn.Module, state: Mapping[str, Any], source: str, *, strict: bool = True) -> Any:
    """What ``module.load_state_dict(state, strict)`` does and returns.

    Args:
        module: takes the weights.
        state: those of a checkpoint, by name.
        source: what to call the checkpoint.
        strict: whether all names must agree; shapes must in any case.

    Raises:
        CheckpointError: names or shapes are others, where torch's own error has a line for each kind and all names.
    """
    try:
        return module.load_state_dict(state, strict=strict)
    except RuntimeError as error:
        if isinstance(error, CheckpointError) or not (what := _differences(module, state, strict)):
            raise
        if len(what) == 1 and (classes := _classes(module, state)):
            raise CheckpointError(
                f"{source} has {classes[0]} classes, and the model {classes[1]}. Give the data of the checkpoint, or "
                "change it with pfc-ckpt append, drop or fuse, or begin anew: init_from=."
            ) from error
        raise CheckpointError(
            f"{source} is of another architecture than the model: {'; '.join(what)}. Give the model as it was "
            "(pfc-train: backbone= and backbone.embedding_dim=), or begin anew with what fits: init_from=."
        ) from error


def _differences(module: nn.Module, state: Mapping[str, Any], strict: bool) -> list[str]:
    """What differs, each with how many there are and the first by name."""
    here = module.state_dict()
    missing = [name for name in here if name not in state] if strict else []
    spare = [name for name in state if name not in here] if strict else []
    unlike = [name for name in here if name in state and _shape(here[name]) != _shape(state[name])]
    found = []
    if missing:
        found.append(f"{len(missing)} of the model's {len(here)} tensors are not in it, {missing[0]} first")
    if spare:
        found.append(f"{len(spare)} of its {len(state)} are not in the model, {spare[0]} first")
    if unlike:
        name = unlike[0]
        found.append(f"{name} has shape {_shape(state[name])} in it and {_shape(here[name])} in the model")
    return found


def _classes(module: nn.Module, state: Mapping[str, Any]) -> tuple[int, int] | None:
    """Of the checkpoint and the model, where nothing but the rows of heads differs."""
    here = module.state_dict()
    pairs = {name: (_shape(state[name]), _shape(here[name])) for name in here if name in state}
    unlike = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    rows = {(there[:1], now[:1]) for there, now in unlike.values()}
    of_heads = all("head" in name.split(".") and there[1:] == now[1:] for name, (there, now) in unlike.items())
    return next((there[0], now[0]) for there, now in rows) if of_heads and len(rows) == 1 else None


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))
