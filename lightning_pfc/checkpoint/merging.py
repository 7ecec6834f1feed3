"""A checkpoint of any number of ranks as one file, without holding it in memory."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from lightning_pfc.checkpoint.blocks import BlockWriter, safetensors_header, tensor_bytes
from lightning_pfc.checkpoint.identities import KEY
from lightning_pfc.checkpoint.manifest_entries import TensorEntry, dtype_of
from lightning_pfc.checkpoint.reader import MODEL, CheckpointReader
from lightning_pfc.checkpoint.single import OWN, save_file
from lightning_pfc.storage.regular import check_replaceable
from lightning_pfc.storage.whole_files import errors_of


def merge_to_file(path: Path, target: Path) -> None:
    """Write one ordinary Lightning file. Large tensors pass through a temporary file beside it, not through memory.

    Raises:
        CheckpointError: naming the damaged file; ``target`` is not touched then.
    """
    source = CheckpointReader(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        tensors = {}
        for number, (key, entry) in enumerate(source.tensors.items()):
            mapped = _mapped(Path(folder) / str(number), entry)
            source.fill(key, mapped)
            tensors[key] = mapped
        checkpoint = source.joined(tensors)
        added = dict(checkpoint.get(OWN, {}))
        added.pop("random_state", None)  # of one rank of several
        checkpoint[OWN] = {**added, "by_class": [k for k, e in source.tensors.items() if e.by_class]}
        if (names := source.identities) is not None:
            checkpoint[OWN][KEY] = names.as_values()
        save_file(target, checkpoint)


def _mapped(path: Path, entry: TensorEntry) -> Tensor:
    count = 1
    for size in entry.shape:
        count *= size
    dtype = dtype_of(entry.dtype)
    if count == 0:
        return torch.empty(entry.shape, dtype=dtype)
    return torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(entry.shape)


def merge_to_safetensors(path: Path, target: Path) -> None:
    """Write the weights into one safetensors file, under their names in the module.

    Raises:
        CheckpointError: naming the damaged file; ``target`` is not touched then.
    """
    source = CheckpointReader(path)
    names = {key.removeprefix(MODEL): key for key in source.tensors if key.startswith(MODEL)}
    small = {
        name: value
        for name, value in source.rest["state_dict"].items()
        if isinstance(value, Tensor) and name not in names
    }
    entries = {name: TensorEntry.of(value, by_class=False) for name, value in small.items()}
    entries |= {name: source.tensors[key] for name, key in names.items()}
    check_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    made = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with errors_of(made, target), BlockWriter(made) as file:
            file.write(safetensors_header([(name, e.dtype, e.shape, e.nbytes) for name, e in entries.items()], {})[0])
            for name in entries:
                for part in source.parts(names[name]) if name in names else [small[name]]:
                    for piece in tensor_bytes(part):
                        file.write(piece)
        os.replace(made, target)
    finally:
        made.unlink(missing_ok=True)
