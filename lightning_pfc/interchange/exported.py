"""What every exporter reads: the centers of the one head, row by row, and the tensors of the backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_pfc.checkpoint.reader import MODEL, CheckpointReader
from lightning_pfc.interchange.files import as_matrix
from lightning_pfc.interchange.imported import BACKBONE, HEAD

_NECK = "neck."


class Exported:
    """A checkpoint of ours, or the safetensors file of ``pfc-ckpt import``.

    Args:
        path: of it.

    Attributes:
        num_classes: rows of the head.
        backbone: its tensors, by the names that it gives them.
        rest: other small tensors, by name.
        hyper_parameters: of the module, where the checkpoint has them.

    Raises:
        CheckpointError, OSError, ValueError: it is neither, or has not the centers of one head.
    """

    def __init__(self, path: Path) -> None:
        open_it = _open_safetensors if path.suffix == ".safetensors" and path.is_file() else _open_checkpoint
        self.num_classes, self._read, self.rest, self.hyper_parameters = open_it(path)
        names = [name for name in self.rest if BACKBONE in name]
        self.backbone = {name.partition(BACKBONE)[2]: self.rest.pop(name) for name in names}

    def rows(self, start: int, stop: int) -> Tensor:
        """(stop - start, D) centers."""
        return self._read(start, stop)

    def say(self, *more: str) -> str:
        """What was written, and what of it is not the whole model."""
        neck = sum(name.startswith(_NECK) or f".{_NECK}" in name for name in self.rest)
        said = [f"{self.num_classes} classes", *more]
        if neck and self.backbone:
            said.append(f"left out: the neck ({neck} tensors), which theirs has not: it gives what comes before it")
        return ", ".join(said)


_Opened = tuple[int, Callable[[int, int], Tensor], dict[str, Tensor], dict[str, Any]]


def _open_checkpoint(path: Path) -> _Opened:
    source = CheckpointReader(path)
    heads = [key for key, entry in source.tensors.items() if _is_centers(key) and entry.by_class]
    if len(heads) != 1:
        names = ", ".join(key.removeprefix(MODEL) for key in heads) or "none"
        raise ValueError(f"{path} should have the centers of one head; it has {names}.")
    [key] = heads
    large = [each for each in source.tensors if each.startswith((MODEL + BACKBONE, MODEL + _NECK))]
    found = {each.removeprefix(MODEL): source.whole(each) for each in large}
    small = source.rest["state_dict"].items()
    found |= {str(name): value for name, value in small if isinstance(value, Tensor)}
    said = source.rest.get("hyper_parameters")
    words = dict(said) if isinstance(said, Mapping) else {}
    return (
        source.tensors[key].shape[0],
        lambda start, stop: torch.cat(list(source.read(key, start, stop))),
        found,
        words,
    )


def _is_centers(key: str) -> bool:
    return key.startswith(MODEL) and key.rpartition(".")[2] == "weight"


def _open_safetensors(path: Path) -> _Opened:
    from safetensors import safe_open

    try:
        file: Any = safe_open(path, "pt")
        names = list(file.keys())
    except Exception as error:  # of safetensors' own kinds
        raise ValueError(f"{path} is no safetensors file, or damaged ({error}).") from error
    if HEAD not in names:
        shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        raise ValueError(
            f"{path} should be a checkpoint, or what pfc-ckpt import wrote, with {HEAD}; it is safetensors with "
            f"{shown}."
        )
    total = file.get_slice(HEAD).get_shape()[0]
    rest = {name: file.get_tensor(name) for name in names if name != HEAD and not name.endswith(f".{HEAD}")}
    return total, lambda start, stop: as_matrix(file.get_slice(HEAD)[start:stop], f"{HEAD} in {path}"), rest, {}
