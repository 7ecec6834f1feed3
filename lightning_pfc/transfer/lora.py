"""LoRA (Hu et al., arXiv:2106.09685) of a backbone: small matrices beside layers that are frozen, through peft.

A layer ``y = W x`` becomes ``y = W x + alpha / rank * B A x``, of which A (rank, in) and B (out, rank) are trained; B
begins at zero, so that nothing has changed at first. A state dict of the backbone has plain names meanwhile and the
merged weights ``W + alpha / rank * B A``: whatever reads a checkpoint needs neither peft nor any word about it. To go
on, W, A and B are kept beside it, in the state of the callback.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from lightning_pfc.checkpoint.errors import CheckpointError
from lightning_pfc.data.errors import missing_library

LAYERS = ("qkv", "proj", "mlp")
"""Which linear layers of a block: what makes queries, keys and values; what joins the heads; those of the MLP."""

_QKV = frozenset({"qkv", "q", "k", "v", "kv", "q_proj", "k_proj", "v_proj", "kv_proj", "query", "key", "value"})
_NAME = "default"  # as peft calls an adapter that nobody has named


@dataclass(frozen=True)
class Lora:
    """What of a vision transformer is adapted, and how. Defaults are those of FRoundation (arXiv:2410.23831).

    Attributes:
        rank: of the matrices.
        alpha: what they add is scaled by ``alpha / rank``.
        dropout: of what goes into them, in training.
        layers: some of :data:`LAYERS`.

    Raises:
        ValueError: for values out of range.
        MissingLibraryError: without peft.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.25
    layers: Sequence[str] = ("qkv",)

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"lora.rank={self.rank!r} must be a whole number of at least 1; leave lora out for none.")
        if not _is_number(self.alpha) or not 0 < self.alpha < float("inf"):
            raise ValueError(f"lora.alpha={self.alpha!r} must be above 0.")
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout={self.dropout!r} must lie in [0, 1).")
        if isinstance(self.layers, str) or not self.layers or set(self.layers) - set(LAYERS):
            raise ValueError(f"lora.layers={self.layers!r} must be a list of some of {', '.join(LAYERS)}.")
        object.__setattr__(self, "layers", tuple(self.layers))
        if find_spec("peft") is None:
            raise missing_library("peft", "finetune=lora")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Adapters:
    """The adapters of a backbone, from now until :meth:`merge`.

    Args:
        backbone: is changed in place: only its adapters are trained.
        lora: what is adapted.

    Raises:
        ValueError: it has none of the layers.
    """

    def __init__(self, backbone: nn.Module, lora: Lora) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        self._backbone = getattr(backbone, "_orig_mod", backbone)
        self.lora = lora
        names = _chosen(self._backbone, lora)
        config = LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=names, bias="none"
        )
        inject_adapter_in_model(config, self._backbone, adapter_name=_NAME)
        self.layers: dict[str, Any] = dict(_adapted(self._backbone))
        self._hooks = [
            self._backbone.register_state_dict_post_hook(_saved),
            self._backbone.register_load_state_dict_pre_hook(_loading),
        ]
        self._reached = False

    @property
    def numel(self) -> int:
        """How many numbers are trained."""
        return sum(param.numel() for _, param in self._parameters())

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, layer in self.layers.items():
            yield f"{name}.A", layer.lora_A[_NAME].weight
            yield f"{name}.B", layer.lora_B[_NAME].weight

    def check_reached(self) -> None:
        """Once, after a backward: see that the network calls the layers, and does not only take their weights.

        Raises:
            ValueError: naming the first that it does not.
        """
        if self._reached:
            return
        missed = [name for name, param in self._parameters() if param.grad is None]
        if missed:
            raise ValueError(
                f"lora.layers={','.join(self.lora.layers)}: {type(self._backbone).__name__} does not call its layer "
                f"{missed[0].rpartition('.')[0]} as a module, so that what stands beside it is never trained. Take "
                f"others of {', '.join(LAYERS)}."
            )
        self._reached = True

    def merge(self) -> None:
        """Add what was learned to the weights, and leave the backbone as it was made."""
        merge_adapters(self._backbone)
        for hook in self._hooks:
            hook.remove()

    def state_dict(self) -> dict[str, Any]:
        """What a run needs to go on: options, the weights before, and the adapters."""
        tensors = {f"{name}.W": layer.get_base_layer().weight for name, layer in self.layers.items()}
        tensors.update(self._parameters())
        return {"options": self._options(), "tensors": {name: value.detach() for name, value in tensors.items()}}

    def _options(self) -> dict[str, Any]:
        return {"rank": self.lora.rank, "alpha": float(self.lora.alpha), "layers": ",".join(self.lora.layers)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            CheckpointError: it is of other options, or another backbone.
        """
        there, here = state["options"], self._options()
        for key, value in here.items():
            if there.get(key) != value:
                raise CheckpointError(
                    f"the checkpoint has adapters with lora.{key}={there.get(key)}, and this run says "
                    f"lora.{key}={value}. Say what it was, or begin anew from its merged weights: init_from=."
                )
        tensors: Mapping[str, Tensor] = state["tensors"]
        own = dict(self._parameters())
        own.update({f"{name}.W": layer.get_base_layer().weight for name, layer in self.layers.items()})
        if set(own) != set(tensors):
            raise CheckpointError(
                f"the checkpoint has no adapter of {min(set(own) ^ set(tensors)).rpartition('.')[0]}."
            )
        with torch.no_grad():
            for name, param in own.items():
                param.copy_(tensors[name])


def _chosen(backbone: nn.Module, lora: Lora) -> list[str]:
    found: dict[str, list[str]] = {word: [] for word in LAYERS}
    for name, module in backbone.named_modules():
        word = _word(name.split(".")) if isinstance(module, nn.Linear) else None
        if word is not None:
            found[word].append(name)
    missing = [word for word in lora.layers if not found[word]]
    if missing:
        there = [word for word in LAYERS if found[word]]
        way_out = f"Give lora.layers=[{','.join(there)}]" if there else "LoRA is for vision transformers: take"
        raise ValueError(
            f"lora.layers={','.join(lora.layers)}: {type(backbone).__name__} has no linear layers that are "
            f"{missing[0]}. {way_out}{', or' if there else ''} finetune=last_blocks, layer_decay or head_first."
        )
    return [name for word in lora.layers for name in found[word]]


def _word(parts: Sequence[str]) -> str | None:
    in_attention = any(part.endswith(("attn", "attention")) for part in parts[:-1])
    if in_attention and parts[-1] in _QKV:
        return "qkv"
    if in_attention and parts[-1] in ("proj", "out_proj"):
        return "proj"
    return "mlp" if any(part == "mlp" or part.startswith("mlp_") for part in parts[:-1]) else None


def _adapted(module: nn.Module) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    yield from ((name, each) for name, each in module.named_modules() if isinstance(each, LoraLayer))


def _merged(layer: Any) -> Tensor:
    weight: Tensor = layer.get_base_layer().weight.detach()
    delta: Tensor = layer.get_delta_weight(_NAME)
    return weight + delta.detach().to(weight.dtype)


def merge_adapters(backbone: nn.Module) -> None:
    """Add what adapters have learned to the weights of their layers, and put those where they were."""
    plain = getattr(backbone, "_orig_mod", backbone)
    for name, layer in list(_adapted(plain)):
        base = layer.get_base_layer()
        with torch.no_grad():
            base.weight.copy_(_merged(layer))
        parent, _, own = name.rpartition(".")
        setattr(plain.get_submodule(parent), own, base)
    if hasattr(plain, "peft_config"):
        del plain.peft_config


# Hooks are functions of the module alone, so that a copy of it has them too.


def _saved(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """Merged weights under the names of a backbone without adapters, in their order."""
    layers = {f"{prefix}{name}.": layer for name, layer in _adapted(module)}
    items = list(state.items())
    state.clear()
    for name, value in items:
        layer = next((start for start in layers if name.startswith(start)), None)
        if layer is None:
            state[name] = value
        elif name == f"{layer}base_layer.weight":
            state[f"{layer}weight"] = _merged(layers[layer])
        elif name.startswith(f"{layer}base_layer."):
            state[layer + name.removeprefix(f"{layer}base_layer.")] = value


def _loading(module: nn.Module, state: dict[str, Any], prefix: str, *args: Any) -> None:
    """Such weights are taken as those of the layers themselves; adapters stay as they are."""
    for name, layer in _adapted(module):
        start = f"{prefix}{name}."
        for key in [key for key in state if key.startswith(start)]:
            state[f"{start}base_layer.{key.removeprefix(start)}"] = state.pop(key)
        own = layer.state_dict(prefix=start)
        state.update({key: value for key, value in own.items() if not key.startswith(f"{start}base_layer.")})
