"""Making a module from a checkpoint: a file or a folder, and never more than the file may set."""

from __future__ import annotations

import inspect
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch.core.saving as saving
import torch
from lightning.pytorch import LightningModule
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_pfc.checkpoint.archive import check_archive, check_checkpoint, check_records, load_archive
from lightning_pfc.checkpoint.errors import CheckpointError
from lightning_pfc.checkpoint.manifest import is_checkpoint_folder, unfinished_folder
from lightning_pfc.checkpoint.reader import read_checkpoint
from lightning_pfc.checkpoint.single import load_file
from lightning_pfc.checkpoint.weights import load_weights
from lightning_pfc.models.reviewed import built_from_a_file

M = TypeVar("M", bound=LightningModule)
Review = Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]


def load_module(
    cls: type[M],
    path: Any,
    map_location: Any = None,
    hparams_file: str | os.PathLike[str] | None = None,
    strict: bool | None = None,
    weights_only: bool | None = None,
    *,
    review: Review,
    **kwargs: Any,
) -> M:
    """What ``cls.load_from_checkpoint(path)`` does, also for a folder that any number of ranks has written.

    Args:
        cls: the module's class; built from the hyper-parameters in the checkpoint.
        path: the file or folder, or an open file.
        map_location: as in ``torch.load``; for a folder, a device.
        hparams_file: a YAML or CSV file of the user's with hyper-parameters, in place of those in the checkpoint.
        strict: whether all names must agree; None leaves it to the module.
        weights_only: False runs whatever code a file names; a folder holds nothing that would need it.
        review: what the file may set: from the checkpoint and the user's arguments, those to build with.
        kwargs: take the place of hyper-parameters.

    Raises:
        CheckpointError: if the checkpoint is damaged, is of another architecture, or sets what a file may not.
        ValueError: for an argument that makes no sense here.
    """
    checkpoint = _read(path, map_location, weights_only)
    said = kwargs if hparams_file is None else {**_read_hparams(hparams_file), **kwargs}
    try:
        values = said if hparams_file is not None else review(checkpoint, said)
        with built_from_a_file(said):
            module = cls(**_accepted(cls, checkpoint, values))
            module.configure_model()
    except ValueError as error:
        raise CheckpointError(f"{_name(path)} is not opened: {error}.") from error
    module.on_load_checkpoint(checkpoint)
    state = checkpoint["state_dict"]
    strict = module.strict_loading if strict is None else strict
    found = load_weights(module, state, _name(path), strict=strict)
    for what, names in (("no", found.missing_keys), ("more:", found.unexpected_keys)):
        if names:
            rank_zero_warn(f"{_name(path)} has {what} {', '.join(names)}.")
    if is_checkpoint_folder(_name(path)):
        return module if map_location is None else module.to(torch.device(map_location))
    return module.to(next((t.device for t in state.values() if isinstance(t, Tensor)), torch.device("cpu")))


def _read(path: Any, map_location: Any, weights_only: bool | None) -> dict[str, Any]:
    plain = True if weights_only is None else weights_only
    location = map_location or saving._default_map_location
    if isinstance(path, str | os.PathLike):
        if not is_checkpoint_folder(path):
            if os.path.isdir(path):
                raise unfinished_folder(path)
            return load_file(Path(path), weights_only=plain, map_location=location)
        if not plain:
            raise ValueError("weights_only=False: a checkpoint folder holds nothing that would need it; leave it out.")
        return read_checkpoint(Path(path))
    try:
        size = path.seek(0, io.SEEK_END)
        check_records(path, check_archive(path, size))
        path.seek(0)
        content = load_archive(path, weights_only=plain, map_location=location)
        check_checkpoint(content)
    except ValueError as error:
        raise CheckpointError(f"{_name(path)} cannot be used: {error}.") from error
    return dict(content)


def _name(path: Any) -> str:
    return os.fspath(path) if isinstance(path, str | os.PathLike) else str(getattr(path, "name", "the checkpoint"))


def _read_hparams(path: str | os.PathLike[str]) -> dict[str, Any]:
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".yml", ".yaml"):
        raise ValueError(f"hparams_file={path} must be a .csv, .yml or .yaml file.")
    return dict(saving.load_hparams_from_tags_csv(path) if suffix == ".csv" else saving.load_hparams_from_yaml(path))


def _accepted(cls: type[LightningModule], checkpoint: Mapping[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Of the hyper-parameters, those that the class takes; under one name, if it takes them so."""
    parameters = inspect.signature(cls.__init__).parameters
    named = {name for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    together = checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_NAME)
    if isinstance(together, str) and together in named - {"self"}:
        return {together: values}
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return values
    return {name: value for name, value in values.items() if name in named}
