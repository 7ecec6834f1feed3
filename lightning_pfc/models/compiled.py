"""Names of weights that do not tell whether a part of the model was compiled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

_WRAPPED = "_orig_mod."


def plain_name(name: str) -> str:
    """A name as it is without ``torch.compile``, which puts ``_orig_mod.`` before those of what it wraps."""
    return name.replace(_WRAPPED, "")


def plain_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict with such names."""
    return {plain_name(name): value for name, value in state.items()}


def save_under_plain_names(module: nn.Module) -> None:
    """Have a module's state dict carry plain names, and take such as well as those of compiled parts.

    So a checkpoint goes from ``model.backbone = torch.compile(model.backbone)`` to a model that is not compiled, and
    back.
    """
    module.register_state_dict_post_hook(_saved)  # type: ignore[no-untyped-call]
    module.register_load_state_dict_pre_hook(_loading)  # type: ignore[no-untyped-call]


def _saved(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    items = list(state.items())  # in their order
    state.clear()
    for name, value in items:
        state[prefix + plain_name(name.removeprefix(prefix)) if name.startswith(prefix) else name] = value


def _loading(module: nn.Module, state: dict[str, Any], prefix: str, *args: Any) -> None:
    own = {plain_name(name): name for name, _ in _tensors(module)}
    for name in [name for name in state if name.startswith(prefix)]:
        plain = plain_name(name.removeprefix(prefix))
        state[prefix + own.get(plain, plain)] = state.pop(name)


def _tensors(module: nn.Module) -> list[tuple[str, Any]]:
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
