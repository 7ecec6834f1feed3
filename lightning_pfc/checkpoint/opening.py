"""Opening a checkpoint folder where Lightning expects a file."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule

from lightning_pfc.checkpoint.surgery import read_checkpoint

M = TypeVar("M", bound=LightningModule)


def load_module(
    cls: type[M],
    path: str | os.PathLike[str],
    map_location: Any = None,
    hparams_file: str | os.PathLike[str] | None = None,
    strict: bool | None = None,
    weights_only: bool | None = None,
    **kwargs: Any,
) -> M:
    """What ``cls.load_from_checkpoint(path)`` does for a file, for a folder that any number of ranks has written.

    Args:
        cls: the module's class; built from the hyper-parameters in the checkpoint.
        path: the folder.
        map_location: a device for the module; None is the CPU.
        hparams_file: not for folders, which hold their hyper-parameters; give them as arguments instead.
        strict: whether all names must agree; None leaves it to the module.
        weights_only: never anything but True: a folder holds tensors and plain values.
        kwargs: take the place of hyper-parameters.

    Raises:
        CheckpointError: if the checkpoint is damaged.
        ValueError: for an argument that makes no sense here.
    """
    if hparams_file is not None:
        raise ValueError(f"hparams_file={hparams_file}: give hyper-parameters as arguments of load_from_checkpoint.")
    if weights_only is False:
        raise ValueError("weights_only=False: a checkpoint folder holds nothing that would need it; leave it out.")
    checkpoint = read_checkpoint(Path(path))
    values = {**checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {}), **kwargs}
    accepted = inspect.signature(cls.__init__).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        values = {name: value for name, value in values.items() if name in accepted}
    module = cls(**values)
    module.configure_model()
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"], strict=module.strict_loading if strict is None else strict)
    return module if map_location is None else module.to(torch.device(map_location))
