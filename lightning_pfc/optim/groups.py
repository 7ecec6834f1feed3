"""Parameter groups: the head apart from the backbone, and no weight decay where it does no good."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from lightning_pfc.ignored import warn_ignored
from lightning_pfc.optim.rows import is_row_sharded


def parameter_groups(
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    head_lr: float | None = None,
    head_lr_scale: float = 1.0,
    head_weight_decay: float | None = None,
    no_decay_on_norm_and_bias: bool = False,
    backbone_lr_scale: float = 1.0,
    layer_decay: float = 1.0,
    layers: Mapping[str, int] | None = None,
) -> list[dict[str, Any]]:
    """Splits the trainable parameters of ``module`` into named groups for any optimizer.

    The names appear in ``LearningRateMonitor`` and in checkpoints: ``"backbone"`` (all that is not of a head),
    ``"head"``, and, if ``no_decay_on_norm_and_bias`` is set, ``"backbone_no_decay"`` and ``"head_no_decay"``. Groups
    without parameters are left out. A head may be without storage still. With rates of their own, what is below
    ``module.backbone`` is ``"backbone"`` or ``"backbone_layer00"`` and so on, and ``"neck"`` all else but heads.

    Args:
        module: Anything that contains Partial FC heads, or none.
        lr: Learning rate of the backbone, and of the head unless said otherwise.
        weight_decay: Weight decay, likewise.
        head_lr: Learning rate of the heads. Not together with ``head_lr_scale``.
        head_lr_scale: Learning rate of the heads as a multiple of ``lr``.
        head_weight_decay: Weight decay of the heads; None for that of the backbone.
        no_decay_on_norm_and_bias: Keep weight decay from parameters with at most one dimension (scales and shifts of
            normalisation, biases, slopes of PReLU), and from those which a submodule names in ``no_weight_decay()``, as
            timm's models do.
        backbone_lr_scale: Learning rate of ``module.backbone`` as a multiple of ``lr``, for weights that exist already.
        layer_decay: Layer-wise rates (arXiv:2106.08254, appendix): the last layer of the backbone has its rate, and
            each one before it that of the next times this.
        layers: The layer of each parameter of ``module.backbone`` by its name there, from 0; for ``layer_decay``.

    Returns:
        Groups with the keys ``params``, ``name``, ``lr`` and ``weight_decay``.

    Raises:
        ValueError: If a number is negative, ``head_lr`` and ``head_lr_scale`` are both given, or nothing is trainable.
    """
    if head_lr is not None and head_lr_scale != 1.0:
        raise ValueError(
            f"head_lr={head_lr} and head_lr_scale={head_lr_scale} say the same thing twice; give one of them."
        )
    factors = {"head_lr_scale": head_lr_scale, "backbone_lr_scale": backbone_lr_scale, "layer_decay": layer_decay}
    options = {
        "lr": lr,
        "weight_decay": weight_decay,
        "head_lr": lr * head_lr_scale if head_lr is None else head_lr,
        "head_weight_decay": weight_decay if head_weight_decay is None else head_weight_decay,
    }
    for name, value in (factors | options).items():
        if not value >= 0:
            raise ValueError(f"{name}={value} is not allowed; give a number >= 0.")

    heads = set(_head_parameter_names(module))
    undecayed = set(_undecayed_names(module)) if no_decay_on_norm_and_bias else set()
    scales = _backbone_scales(module, backbone_lr_scale, layer_decay, layers)
    rest = "neck" if scales else "backbone"
    groups: dict[str, dict[str, Any]] = {}
    for name, param in module.named_parameters():
        if param.requires_grad:
            part, scale = ("head", 1.0) if name in heads else scales.get(name, (rest, 1.0))
            of = "head_" if part == "head" else ""
            plain = name in undecayed
            group = f"{part}_no_decay" if plain else part
            rate, decay = options[f"{of}lr"] * scale, 0.0 if plain else options[f"{of}weight_decay"]
            made = groups.setdefault(group, {"params": [], "name": group, "lr": rate, "weight_decay": decay})
            made["params"].append(param)
    if undecayed and not options["weight_decay"] and not options["head_weight_decay"]:
        warn_ignored("no_decay_on_norm_and_bias=True", "there is no weight decay to keep from them.")
    if not heads:
        _warn_without_heads(head_lr, head_lr_scale, head_weight_decay)
    found = sorted(groups.values(), key=lambda group: _place(group["name"]))
    if not found:
        raise ValueError("module has no parameter with requires_grad=True, so there is nothing to optimize.")
    return found


def _backbone_scales(
    module: nn.Module, scale: float, decay: float, layers: Mapping[str, int] | None
) -> dict[str, tuple[str, float]]:
    """The group and the factor of each parameter of the backbone by its name; nothing where all factors are 1."""
    if scale == decay == 1.0:
        return {}
    word = f"layer_decay={decay}" if decay != 1.0 else f"backbone_lr_scale={scale}"
    backbone = getattr(module, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise ValueError(f"{word} speaks of module.backbone, and {type(module).__name__} has none. Name it so.")
    names = [name for name, _ in backbone.named_parameters()]
    if decay == 1.0:
        return {f"backbone.{name}": ("backbone", scale) for name in names}
    if layers is None:
        raise ValueError(f"{word} needs layers=, as lightning_pfc.models.layers_of(module.backbone) gives them.")
    last = max(layers.values())
    return {f"backbone.{n}": (f"backbone_layer{layers[n]:02d}", scale * decay ** (last - layers[n])) for n in names}


def _place(name: str) -> tuple[int, str]:
    """Backbone, neck, head."""
    return ["backbone", "neck", "head"].index(name.removesuffix("_no_decay").split("_")[0]), name


def _warn_without_heads(lr: float | None, lr_scale: float, weight_decay: float | None) -> None:
    given = {"head_lr": lr, "head_lr_scale": None if lr_scale == 1.0 else lr_scale, "head_weight_decay": weight_decay}
    for name, value in given.items():
        if value is not None:
            warn_ignored(f"{name}={value}", "the module has no PartialFC head.", stacklevel=4)


def _head_parameter_names(module: nn.Module) -> Iterator[str]:
    """Names of the parameters of heads: modules that hold a parameter which is sharded by class."""
    for prefix, child in module.named_modules():
        if any(is_row_sharded(param) for param in child.parameters(recurse=False)):
            for name, _ in child.named_parameters(prefix):
                yield name


def _undecayed_names(module: nn.Module) -> Iterator[str]:
    for name, param in module.named_parameters():
        if param.dim() <= 1:
            yield name
    for prefix, child in module.named_modules():
        names = getattr(child, "no_weight_decay", None)
        if callable(names):
            for name in names():
                yield f"{prefix}.{name}" if prefix else name
