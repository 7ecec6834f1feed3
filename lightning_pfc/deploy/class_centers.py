"""The head's centers of a checkpoint as a gallery: read and written a block at a time, never whole in memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_pfc.checkpoint.reader import MODEL, CheckpointReader
from lightning_pfc.data.source import Names
from lightning_pfc.deploy.centers import write_names
from lightning_pfc.deploy.description import Centers
from lightning_pfc.deploy.errors import ExportError
from lightning_pfc.losses import loss_from_config

FILE, NAMES = "centers.safetensors", "classes.txt"
_WEIGHT, _BIAS = f"{MODEL}head.weight", f"{MODEL}head.bias"


def write_centers(folder: Path, checkpoint: Path, hyper_parameters: Mapping[str, Any], names: Names | None) -> Centers:
    """Write the centers of a checkpoint, of length one where the loss normalises, and the names of the classes.

    Args:
        folder: to write into.
        checkpoint: a file, or the folder of several ranks.
        hyper_parameters: of the module.
        names: of the classes, where the checkpoint does not keep them; None numbers them then.

    Raises:
        ExportError: the checkpoint holds no head, or another number of classes than names.
        CheckpointError: it is damaged.
    """
    source = CheckpointReader(checkpoint)
    if _WEIGHT not in source.tensors:
        raise ExportError("holds no head of the name `head`, so there are no centers to export", checkpoint)
    loss = loss_from_config(hyper_parameters.get("loss", "ArcFace"))
    classes, width = source.tensors[_WEIGHT].shape
    known = source.identities
    if known is not None and known.count == classes:
        told = names if names is not None and len(names) == classes else None
        # Whose each row is: the data of the run may have changed since. One that was added may have no name.
        written: Iterable[str] = (name or (told[i] if told else str(i)) for i, name in enumerate(known))
    elif names is None:
        written = map(str, range(classes))
    elif len(names) == classes:
        written = (names[i] for i in range(classes))
    else:
        raise ExportError(
            f"has {classes} classes, and the data of the run {len(names)}: they have changed since. Restore them, or "
            "export without --centers",
            checkpoint,
        )
    per_class, unit = int(loss.num_centers), bool(loss.normalize)
    shapes: dict[str, Sequence[int]] = {"centers": (classes * per_class, width // per_class)}
    if _BIAS in source.tensors and not unit:
        shapes["bias"] = (classes,)
    with (folder / FILE).open("wb") as file:
        _write_header(file, shapes)
        for rows in source.parts(_WEIGHT):
            file.write(_bytes(_rows(rows, per_class, unit)))
        if "bias" in shapes:
            for part in source.parts(_BIAS):
                file.write(_bytes(part.float()))
    write_names(folder / NAMES, written)
    return Centers(file=FILE, names=NAMES, classes=classes, per_class=per_class, score="cosine" if unit else "dot")


def _rows(rows: Tensor, per_class: int, unit: bool) -> Tensor:
    rows = rows.float().reshape(rows.shape[0] * per_class, -1)
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=1e-12) if unit else rows


def _write_header(file: BinaryIO, shapes: Mapping[str, Sequence[int]]) -> None:
    """The start of a safetensors file of float32 tensors."""
    header: dict[str, Any] = {}
    start = 0
    for name, shape in shapes.items():
        size = 4 * int(torch.Size(shape).numel())
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)


def _bytes(tensor: Tensor) -> bytes:
    array: npt.NDArray[np.float32] = tensor.contiguous().numpy()
    return array.tobytes()
