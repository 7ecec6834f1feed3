"""Folders of this package as storage of ``torch.distributed.checkpoint``: one data file and one small file per rank."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from lightning_pfc.checkpoint.blocks import BlockReader, BlockWriter, write_safetensors
from lightning_pfc.checkpoint.manifest import Manifest
from lightning_pfc.checkpoint.manifest_entries import ChunkEntry, FileEntry, TensorEntry, dtype_name, dtype_of

_FILE = "file:"  # a write result with this prefix stands for a file, not for a tensor


class FolderWriter(StorageWriter):
    """Writes one safetensors file and one small file per rank, and the manifest when all ranks are done.

    Args:
        folder: exists, is empty, and is seen by no one until ``publish`` is called.
        small: this rank's rest of the checkpoint.
        info: for the manifest.
        publish: called on rank 0 once everything is on the disk.
        more: writes further files into the folder, on rank 0; gives their names and entries.
    """

    def __init__(
        self,
        folder: Path,
        small: Any,
        info: dict[str, Any],
        publish: Callable[[], None],
        more: Callable[[Path], Iterable[tuple[str, FileEntry]]] = lambda folder: (),
    ) -> None:
        self.folder, self.small, self.info, self.publish, self.more = folder, small, info, publish, more
        self.rank = 0

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept from one checkpoint to the next."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Learn the rank; planned below."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Keep the plan."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Number the plans, so that each rank knows the names of its files."""
        return [dataclasses.replace(plan, storage_data=rank) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's files and force them to the disk."""
        rank = plan.storage_data
        results = []
        if plan.items:
            name = f"rank-{rank:05d}.safetensors"
            items = []
            for item in plan.items:
                tensor = planner.resolve_data(item)
                if not isinstance(tensor, Tensor) or item.index.offset is None:
                    raise TypeError(f"{item.index.fqn} is not a tensor.")
                items.append((item.index.fqn, list(item.index.offset), tensor))
            entry, starts = write_safetensors(self.folder / name, items)
            results.append(_file_result(name, entry))
            for item, (_, offset, tensor), start in zip(plan.items, items, starts, strict=True):
                stored = ChunkEntry(name, start, offset, list(tensor.shape))
                results.append(WriteResult(item.index, tensor.numel() * tensor.element_size(), stored))
        name = small_name(rank)
        results.append(_file_result(name, save_small(self.folder / name, self.small)))
        if rank == 0:
            results += [_file_result(*made) for made in self.more(self.folder)]
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On rank 0, when all ranks have written: write the manifest, then let the world see the checkpoint."""
        files: dict[str, FileEntry] = {}
        chunks: dict[str, list[ChunkEntry]] = {}
        for result in (result for of_rank in results for result in of_rank):
            if result.index.fqn.startswith(_FILE):
                files[result.index.fqn.removeprefix(_FILE)] = result.storage_data
            else:
                chunks.setdefault(result.index.fqn, []).append(result.storage_data)
        tensors = {}
        for key, found in chunks.items():
            stored = metadata.state_dict_metadata[key]
            if not isinstance(stored, TensorStorageMetadata):
                raise TypeError(f"{key} is not a tensor.")
            found.sort(key=lambda chunk: chunk.offset)
            by_class = key in self.info.get("by_class", ())
            tensors[key] = TensorEntry(dtype_name(stored.properties.dtype), list(stored.size), by_class, found)
        info = {name: value for name, value in self.info.items() if name != "by_class"}
        Manifest(tensors, files, len(results), info).write(self.folder)
        self.publish()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Folders of a file system."""
        return True


def small_name(rank: int) -> str:
    """The file with everything of a rank that is not in the data files."""
    return f"rank-{rank:05d}.pt"


def save_small(path: Path, rest: Any) -> FileEntry:
    """Write everything of one rank that is not in the data files."""
    buffer = io.BytesIO()
    torch.save(rest, buffer)
    with BlockWriter(path) as file:
        file.write(buffer.getbuffer())
    return file.entry()


def _file_result(name: str, entry: FileEntry) -> WriteResult:
    return WriteResult(MetadataIndex(_FILE + name), entry.size, entry)


class FolderReader(StorageReader):
    """Reads parts of tensors straight into place; checks every block that it touches."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept from one checkpoint to the next."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The manifest in the words of ``torch.distributed.checkpoint``."""
        stored: dict[str, Any] = {}
        places: dict[MetadataIndex, ChunkEntry] = {}
        for key, entry in self.manifest.tensors.items():
            chunks = [ChunkStorageMetadata(torch.Size(c.offset), torch.Size(c.shape)) for c in entry.chunks]
            properties = TensorProperties(dtype=dtype_of(entry.dtype))
            stored[key] = TensorStorageMetadata(properties, torch.Size(entry.shape), chunks)
            for chunk in entry.chunks:
                places[MetadataIndex(key, torch.Size(chunk.offset))] = chunk
        return Metadata(state_dict_metadata=stored, storage_data=places)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Learn where the chunks lie."""
        self._places: dict[MetadataIndex, ChunkEntry] = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Keep the plan."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Keep the plans."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill this rank's tensors, file by file and from front to back."""
        by_file: dict[str, list[tuple[int, Any]]] = {}
        for item in plan.items:
            chunk = self._places[item.storage_index]
            whole_rows = all(n == m for n, m in zip(item.lengths[1:], chunk.shape[1:], strict=True))
            if not whole_rows:
                raise ValueError(f"{item.storage_index.fqn} is split across columns, which no head does.")
            row = _row_bytes(chunk, self.manifest.tensors[item.storage_index.fqn].dtype)
            skipped = item.storage_offsets[0] * row if chunk.shape else 0
            by_file.setdefault(chunk.file, []).append((chunk.start + skipped, item))
        for name, reads in by_file.items():
            with BlockReader(self.folder, name, self.manifest.files[name]) as file:
                for start, item in sorted(reads, key=lambda read: read[0]):
                    file.read_rows(start, planner.resolve_tensor(item))
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Folders of a file system."""
        return True


def _row_bytes(chunk: ChunkEntry, dtype: str) -> int:
    width = torch.empty((), dtype=dtype_of(dtype)).element_size()
    for size in chunk.shape[1:]:
        width *= size
    return width
