"""Reads a checkpoint of any number of ranks row by row, without holding it in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_pfc.checkpoint.blocks import BlockReader
from lightning_pfc.checkpoint.errors import CheckpointError
from lightning_pfc.checkpoint.identities import Identities, in_folder, in_values
from lightning_pfc.checkpoint.manifest import BLOCK, Manifest, is_checkpoint_folder
from lightning_pfc.checkpoint.manifest_entries import TensorEntry, dtype_of
from lightning_pfc.checkpoint.save_load import read_small
from lightning_pfc.checkpoint.single import OWN, load_file
from lightning_pfc.checkpoint.split_tree import join_tree, split_tree

MODEL = "state_dict/"


class CheckpointReader:
    """A checkpoint that is read row by row: a folder of any number of ranks, or Lightning's file of one process.

    Args:
        path: the folder or file.
        check: whether a file is compared with its checksums, which reads it whole; those of a folder are compared as it
            is read.

    Raises:
        CheckpointError: if it is neither, or damaged.
    """

    def __init__(self, path: Path, check: bool = True) -> None:
        self.path = path
        self.manifest: Manifest | None = None
        self._whole: dict[str, Tensor] = {}
        if is_checkpoint_folder(path):
            self.manifest = Manifest.read(path)
            self.rest = read_small(path, self.manifest, 0)
            self.tensors = self.manifest.tensors
            self.info = self.manifest.info
        elif path.is_file():
            self._open_file(check)
        else:
            raise CheckpointError(f"{path} is neither a checkpoint folder with a manifest.json nor a checkpoint file.")

    def _open_file(self, check: bool) -> None:
        content = load_file(self.path, check=check)
        own = content.get(OWN)
        by_class = set(map(str, own.get("by_class", ()))) if isinstance(own, Mapping) else set()
        self.rest, tensors = split_tree(content, lambda key, tensor: None, keep=by_class)
        self._whole = {key: tensor for key, tensor in tensors.items() if isinstance(tensor, Tensor)}
        self.tensors = {
            key: TensorEntry.of(tensor, by_class=key in by_class and tensor.dim() > 0)
            for key, tensor in self._whole.items()
        }
        names = ("epoch", "global_step", "pytorch-lightning_version")
        self.info = {name: content[name] for name in names if name in content}

    @property
    def identities(self) -> Identities | None:
        """The names of its classes, if it has them."""
        if self.manifest is not None:
            return in_folder(self.path, self.manifest)
        return in_values(self.rest.get(OWN), str(self.path))

    @property
    def num_classes(self) -> int:
        """Rows of the tensors that have one per class.

        Raises:
            CheckpointError: if there are none, or heads of different sizes.
        """
        sizes = {entry.shape[0] for entry in self.tensors.values() if entry.by_class}
        if not sizes:
            raise CheckpointError(
                f"{self.path} does not say which tensors have a row per class; save it under strategy='pfc'."
            )
        if len(sizes) > 1:
            raise CheckpointError(f"{self.path} has heads of {sorted(sizes)} classes; only one size can be changed.")
        return sizes.pop()

    def read(self, key: str, start: int, stop: int) -> Iterator[Tensor]:
        """Rows of a tensor, in parts of about one block."""
        entry = self.tensors[key]
        step = max(1, BLOCK // max(1, entry.row_bytes))
        if self.manifest is None:
            for first in range(start, stop, step):
                yield self._whole[key][first : min(first + step, stop)]
            return
        for chunk in entry.chunks:
            low, high = max(start, chunk.offset[0]), min(stop, chunk.offset[0] + chunk.shape[0])
            if low >= high:
                continue
            with BlockReader(self.path, chunk.file, self.manifest.files[chunk.file]) as file:
                for first in range(low, high, step):
                    part = torch.empty((min(first + step, high) - first, *entry.shape[1:]), dtype=dtype_of(entry.dtype))
                    file.read_rows(chunk.start + (first - chunk.offset[0]) * entry.row_bytes, part)
                    yield part

    def parts(self, key: str) -> Iterator[Tensor]:
        """All rows of a tensor."""
        entry = self.tensors[key]
        if self.manifest is None and not entry.shape:
            yield self._whole[key]
        elif not entry.shape:
            yield self.whole(key)
        else:
            yield from self.read(key, 0, entry.shape[0])

    def whole(self, key: str) -> Tensor:
        """One tensor in memory."""
        entry = self.tensors[key]
        if self.manifest is None:
            return self._whole[key]
        out = torch.empty(entry.shape, dtype=dtype_of(entry.dtype))
        self.fill(key, out)
        return out

    def joined(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """The checkpoint, with these tensors in their places."""
        try:
            return dict(join_tree(self.rest, tensors))
        except ValueError as error:
            raise CheckpointError(f"{self.path} cannot be used: {error}.") from error

    def fill(self, key: str, out: Tensor) -> None:
        """Copy one tensor into another of its shape."""
        entry = self.tensors[key]
        if not entry.shape and self.manifest is not None:
            [chunk] = entry.chunks
            with BlockReader(self.path, chunk.file, self.manifest.files[chunk.file]) as file:
                file.read_rows(chunk.start, out)
            return
        done = 0
        for part in self.parts(key):
            if not entry.shape:
                out.copy_(part)
                return
            out[done : done + len(part)] = part
            done += len(part)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of any number of ranks as one process would have written it, in memory, with whole heads.

    Raises:
        CheckpointError: naming the damaged file.
    """
    source = CheckpointReader(path)
    return source.joined({key: source.whole(key) for key in source.tensors})
