"""The state dict of any optimizer that holds shards: its rows say their place, and are found again by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakSet

from torch import Tensor
from torch.optim import Optimizer

from lightning_pfc.distributed.stated_rows import own_rows, plain_rows, stated_rows
from lightning_pfc.optim.foreign.shard import row_shard
from lightning_pfc.optim.foreign.steps import check_optimizer
from lightning_pfc.optim.foreign.trial import is_trying

_watched: WeakSet[Optimizer] = WeakSet()


def watch_state(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Hook of every optimizer's step in the process, which also functions of torch take that read or set its state."""
    if (
        optimizer in _watched
        or is_trying()
        or not any(row_shard(p) for g in optimizer.param_groups for p in g["params"])
    ):
        return
    _watched.add(optimizer)
    for state in optimizer.state.values():
        for key, value in state.items():
            state[key] = plain_rows(value)
    optimizer.register_state_dict_post_hook(_state_rows)
    optimizer.register_load_state_dict_pre_hook(own_state_rows)


def _state_rows(optimizer: Optimizer, content: dict[str, Any]) -> dict[str, Any]:
    def stated(param: Tensor, name: str, value: Tensor) -> Tensor:
        shard = row_shard(param)
        assert shard is not None
        return stated_rows(value, shard.rows, shard.comm) if value.shape[0] == shard.rows.num_local else value

    return _changed(optimizer, content, stated)


def own_state_rows(optimizer: Optimizer, content: dict[str, Any]) -> dict[str, Any]:
    """A state dict with this rank's rows of what it has of all, see :func:`own_rows`."""

    def own(param: Tensor, name: str, value: Tensor) -> Tensor:
        shard = row_shard(param)
        assert shard is not None
        return own_rows(value, name, shard.rows, param.shape[0])  # type: ignore[no-any-return]

    return _changed(optimizer, content, own)


def _changed(
    optimizer: Optimizer, content: dict[str, Any], change: Callable[[Tensor, str, Tensor], Tensor]
) -> dict[str, Any]:
    """The state dict with its rows changed; the optimizer's own state, which it shares, stays as it is."""
    row_keys = _row_keys(optimizer)
    states = dict(content["state"])
    for key, param in _by_key(optimizer, content):
        if key not in states or row_shard(param) is None:
            continue
        states[key] = {
            name: change(param, f"{type(optimizer).__name__}'s {name}", value)
            if row_keys(name) and isinstance(value, Tensor) and value.dim() > 0
            else value
            for name, value in states[key].items()
        }
    return {**content, "state": states}


def _row_keys(optimizer: Optimizer) -> Callable[[str], bool]:
    declared = getattr(optimizer, "row_state_keys", None)
    if declared is not None:
        return set(declared).__contains__
    tried = check_optimizer(optimizer).row_keys
    return lambda name: tried.get(name, False)


def _by_key(optimizer: Optimizer, content: dict[str, Any]) -> Iterator[tuple[Any, Tensor]]:
    """What a state dict calls each parameter: it has them in the order of the groups."""
    for group, stored in zip(optimizer.param_groups, content["param_groups"], strict=False):
        yield from zip(stored["params"], group["params"], strict=False)
