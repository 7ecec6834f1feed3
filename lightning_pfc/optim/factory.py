"""Optimizers and schedules from plain names and numbers, as configs and checkpoints hold them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_pfc.checked import check_call
from lightning_pfc.ignored import warn_ignored
from lightning_pfc.optim import schedules
from lightning_pfc.optim.adamw import SparseAdamW, check_missed_steps
from lightning_pfc.optim.frozen import refuse_thawed
from lightning_pfc.optim.groups import parameter_groups
from lightning_pfc.optim.lars import LARS
from lightning_pfc.optim.lr_scaling import Rule, scale_lr
from lightning_pfc.optim.rowwise_adagrad import RowWiseAdagrad
from lightning_pfc.optim.sgd import SparseSGD

ROW_SPARSE: dict[str, type[Optimizer]] = {
    "sgd": SparseSGD,
    "adamw": SparseAdamW,
    "rowwise_adagrad": RowWiseAdagrad,
    "lars": LARS,
}
_ONLY_ROW_SPARSE = ("rowwise_adagrad", "lars")

SCHEDULES: dict[str, Callable[..., LambdaLR]] = {
    "polynomial": schedules.polynomial,
    "cosine": schedules.cosine,
    "cosine_with_restarts": schedules.cosine_with_restarts,
    "multi_step": schedules.multi_step,
    "constant": schedules.constant,
}

# Keys of an optimizer's config that are not arguments of its class.
_GROUP_KEYS = (
    *("head_lr", "head_lr_scale", "head_weight_decay", "no_decay_on_norm_and_bias"),
    *("backbone_lr_scale", "layer_decay"),
)
_SCALE_KEYS = ("reference_batch", "scale_rule")


def optimizer_names() -> list[str]:
    """Names that :func:`create_optimizer` takes: this package's own, then those of ``torch.optim``, in lower case."""
    return [*ROW_SPARSE, *sorted(set(_torch_optimizers()) - set(ROW_SPARSE))]


def create_optimizer(
    module: nn.Module,
    config: Mapping[str, Any],
    *,
    row_sparse: bool,
    global_batch: int | None = None,
    layers: Mapping[str, int] | None = None,
) -> Optimizer:
    """One optimizer for everything in ``module`` that is trainable, backbone and heads together.

    What is frozen is left out. Should it be unfrozen later and be in no group then, a step raises ValueError.

    Args:
        module: what to optimize; its heads may be without storage still.
        config: ``name`` (of :func:`optimizer_names`), ``lr``, the arguments of the class, those of
            :func:`~lightning_pfc.optim.groups.parameter_groups` (``head_lr``, ``head_lr_scale``, ``head_weight_decay``,
            ``no_decay_on_norm_and_bias``, ``backbone_lr_scale``, ``layer_decay``), ``row_sparse`` (overrides the
            argument), and ``reference_batch`` with ``scale_rule``: the global batch that ``lr`` is meant for, see
            :func:`~lightning_pfc.optim.lr_scaling.scale_lr`.
        row_sparse: whether centers that were not sampled stay untouched, with their state; if not, ``sgd`` and
            ``adamw`` are those of ``torch.optim``, which move every center in every step.
        global_batch: samples per optimizer step, over all ranks and accumulated batches; for ``reference_batch``.
        layers: the layer of each parameter of ``module.backbone``; for ``layer_decay``.

    Raises:
        ValueError: for an unknown name or key, with what exists; a missing ``lr``; ``row_sparse`` for an optimizer that
            cannot; or ``reference_batch`` where the global batch is not known.
    """
    arguments = dict(config)
    name = str(arguments.pop("name", "")).lower()
    if name not in optimizer_names():
        raise ValueError(_unknown("optimizer", name, optimizer_names()))
    if "lr" not in arguments:
        raise ValueError(f"optimizer {name!r} needs lr, the learning rate.")
    _check_flags(name, arguments)
    wanted = arguments.pop("row_sparse", None)
    if wanted and name not in ROW_SPARSE:
        raise ValueError(
            f"optimizer {name!r} has no row-sparse form, which row_sparse=True asks for; take one of "
            f"{', '.join(ROW_SPARSE)}, or row_sparse=false."
        )
    if wanted is False and name in _ONLY_ROW_SPARSE:
        warn_ignored("row_sparse=False", f"{name} always steps by rows.")
    sparse = name in _ONLY_ROW_SPARSE or (name in ROW_SPARSE and (row_sparse if wanted is None else wanted))
    factory = ROW_SPARSE[name] if sparse else _torch_optimizers()[name]
    if name == "adamw":
        _settle_missed_steps(arguments, sparse)
    settled = arguments.get("fused") == "auto"
    if settled:
        _settle_fused(arguments, module, factory)
    known = [p for p in inspect.signature(factory).parameters if p not in ("self", "params")]
    for key in arguments:
        if key not in (*known, *_GROUP_KEYS, *_SCALE_KEYS):
            raise ValueError(_unknown(f"key of optimizer {name!r}", key, [*known, *_GROUP_KEYS, *_SCALE_KEYS]))
    _check_kinds(factory, arguments)
    _warn_of_idle_keys(arguments)
    lr = scaled_lr(arguments, global_batch)
    if arguments.get("head_lr") is not None:
        arguments["head_lr"] = scaled_lr({**arguments, "lr": arguments["head_lr"]}, global_batch)
    weight_decay = float(arguments.pop("weight_decay", inspect.signature(factory).parameters["weight_decay"].default))
    group_options = {key: arguments.pop(key) for key in _GROUP_KEYS if key in arguments}
    for key in ("lr", *_SCALE_KEYS):
        arguments.pop(key, None)
    groups = parameter_groups(module, lr=lr, weight_decay=weight_decay, layers=layers, **group_options)
    optimizer = factory(groups, lr=lr, weight_decay=weight_decay, **arguments)  # type: ignore[call-arg]
    if settled and arguments.get("fused"):
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]  # nothing is unscaled on a CPU
    refuse_thawed(optimizer, {name: param for name, param in module.named_parameters() if not param.requires_grad})
    return optimizer


def _check_flags(name: str, arguments: Mapping[str, Any]) -> None:
    """See that what is true or false is no word, which would count as true."""
    known = [inspect.signature(parameter_groups), inspect.signature((_torch_optimizers() | ROW_SPARSE)[name])]
    flags = {key for each in known for key, p in each.parameters.items() if isinstance(p.default, bool)}
    for key in flags | {"row_sparse", "fused"}:
        value = arguments.get(key)
        words = ("auto",) if key == "fused" else ()
        if value is not None and not isinstance(value, bool) and value not in (0, 1, *words):
            raise TypeError(f"optimizer {name!r}: {key}={value!r} must be {', '.join((*words, 'True'))} or False.")


def _check_kinds(factory: Callable[..., Optimizer], arguments: Mapping[str, Any]) -> None:
    """See that every argument is of the kind that it must be; a text that is a number is one, as YAML makes of 1e-3."""
    given = {key: _number(value) for key, value in arguments.items()}
    check_call(factory, given, "optimizer")
    check_call(parameter_groups, {key: value for key, value in given.items() if key in _GROUP_KEYS}, "optimizer")
    check_call(_scaling, given, "optimizer")


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _scaling(reference_batch: int | None = None, scale_rule: Rule = "linear") -> None:
    """What the keys of an optimizer's config may be that scale its learning rate."""


def _settle_fused(arguments: dict[str, Any], module: nn.Module, factory: Callable[..., Optimizer]) -> None:
    """``auto``: one pass over the parameters where the optimizer has it and all are on a CPU; elsewhere its choice."""
    del arguments["fused"]
    on_cpu = all(param.device.type == "cpu" for param in module.parameters())  # a head may be without storage yet
    if on_cpu and "fused" in inspect.signature(factory).parameters:
        arguments["fused"] = True


def _settle_missed_steps(arguments: dict[str, Any], sparse: bool) -> None:
    """``auto`` and None become what they mean; what a dense optimizer has no use for is left out, with a warning."""
    given = arguments.pop("missed_steps", None)
    if given is None or (given == "auto" and not sparse):
        return
    missed_steps = "decay" if given == "auto" else given
    check_missed_steps(missed_steps)
    if sparse:
        arguments["missed_steps"] = missed_steps
    else:
        warn_ignored(
            f"missed_steps={given!r}",
            "this AdamW is the dense one, which moves every center in every step; give sample_rate < 1 or "
            "row_sparse=true, or leave it out.",
            stacklevel=4,
        )


def _warn_of_idle_keys(arguments: Mapping[str, Any]) -> None:
    rule = arguments.get("scale_rule", "linear")
    if rule != "linear" and arguments.get("reference_batch") is None:
        warn_ignored(f"scale_rule={rule!r}", "without reference_batch the learning rate is not scaled.", stacklevel=4)


def scaled_lr(config: Mapping[str, Any], global_batch: int | None) -> float:
    """The learning rate of an optimizer's config at a global batch.

    Raises:
        ValueError: if ``reference_batch`` is given but the global batch is not known.
    """
    lr, reference = float(config["lr"]), config.get("reference_batch")
    if reference is None:
        return lr
    if global_batch is None:
        raise ValueError(
            f"reference_batch={reference} scales lr by the global batch, which the training data loader does not "
            "tell (it has no batch_size); leave reference_batch out and give the final lr."
        )
    return scale_lr(lr, global_batch=global_batch, reference_batch=reference, rule=config.get("scale_rule", "linear"))


def create_scheduler(
    optimizer: Optimizer, config: Mapping[str, Any], *, total_steps: float, steps_per_epoch: float
) -> LambdaLR:
    """A schedule to be stepped once per optimizer step.

    Args:
        optimizer: what it drives.
        config: ``name`` (a key of :data:`SCHEDULES`) and the arguments of that function of
            :mod:`lightning_pfc.optim.schedules`.
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps of one pass over the data.

    Raises:
        ValueError: for an unknown name or key, with what exists.
    """
    arguments = dict(config)
    name = str(arguments.pop("name", ""))
    if name not in SCHEDULES:
        raise ValueError(_unknown("scheduler", name, list(SCHEDULES)))
    factory = SCHEDULES[name]
    known = [
        p for p in inspect.signature(factory).parameters if p not in ("optimizer", "total_steps", "steps_per_epoch")
    ]
    for key in arguments:
        if key not in known:
            raise ValueError(_unknown(f"key of scheduler {name!r}", key, known))
    check_call(factory, arguments, "scheduler")
    return factory(optimizer, total_steps=total_steps, steps_per_epoch=steps_per_epoch, **arguments)


def _torch_optimizers() -> dict[str, type[Optimizer]]:
    """Optimizers of ``torch.optim`` that take parameter groups with a weight decay."""
    found: dict[str, type[Optimizer]] = {}
    for name, value in vars(torch.optim).items():
        if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer:
            parameters = inspect.signature(value).parameters
            if {"lr", "weight_decay"} <= set(parameters):
                found[name.lower()] = value
    return found


def _unknown(what: str, name: str, existing: list[str]) -> str:
    close = difflib.get_close_matches(name.lower(), existing, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"{what} {name!r} does not exist.{hint} There are: {', '.join(existing)}."
