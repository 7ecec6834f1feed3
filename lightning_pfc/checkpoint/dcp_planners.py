"""Which rows a rank writes and which it reads, as ``torch.distributed.checkpoint`` asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from lightning_pfc.checkpoint.split_tree import ClassRows


class RowsSavePlanner(DefaultSavePlanner):
    """Plans by class: rows that only one rank has are written by it, what all have is shared out among them.

    Args:
        writes_rows: whether this rank writes its rows; of several copies of a head only one does.
    """

    def __init__(self, writes_rows: bool = True) -> None:
        super().__init__(flatten_state_dict=False)
        self.writes_rows = writes_rows
        self._items: Mapping[str, Tensor | ClassRows] = {}

    def set_up_planner(
        self, state_dict: Any, storage_meta: StorageMeta | None = None, is_coordinator: bool = False
    ) -> None:
        """Take the tensors to be saved."""
        self._items = state_dict
        self.is_coordinator = is_coordinator

    def create_local_plan(self) -> SavePlan:
        """What this rank could write."""
        items = []
        for key, item in self._items.items():
            if isinstance(item, ClassRows):
                if self.writes_rows:
                    offset = (item.shard.start, *(0 for _ in item.shape[1:]))
                    items.append(_write_item(key, item.tensor, offset, item.shape, WriteItemType.SHARD))
            else:
                zeros = (0,) * item.dim()
                items.append(_write_item(key, item, zeros, item.shape, WriteItemType.TENSOR))
        self.plan = SavePlan(items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """The tensor behind a planned write."""
        item = self._items[write_item.index.fqn]
        return item.tensor if isinstance(item, ClassRows) else item


def _write_item(key: str, tensor: Tensor, offset: Any, shape: Any, kind: WriteItemType) -> WriteItem:
    data = TensorWriteData(
        chunk=ChunkStorageMetadata(torch.Size(offset), tensor.shape),
        properties=TensorProperties(dtype=tensor.dtype),
        size=torch.Size(shape),
    )
    return WriteItem(index=MetadataIndex(key, torch.Size(offset)), type=kind, tensor_data=data)


class RowsLoadPlanner(DefaultLoadPlanner):
    """Plans which part of which file fills this rank's tensors."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False)
        self._targets: Mapping[str, Tensor | ClassRows] = {}

    def set_up_planner(self, state_dict: Any, metadata: Metadata | None = None, is_coordinator: bool = False) -> None:
        """Take the tensors to be filled."""
        self._targets = state_dict
        self._metadata = metadata

    def create_local_plan(self) -> LoadPlan:
        """What this rank reads."""
        items = []
        for key, target in self._targets.items():
            stored = self._metadata.state_dict_metadata[key] if self._metadata is not None else None
            if not isinstance(stored, TensorStorageMetadata):
                raise TypeError(f"the checkpoint has no tensor {key!r}.")
            if isinstance(target, ClassRows):
                offset = torch.Size((target.shard.start, *(0 for _ in target.shape[1:])))
                chunk = ChunkStorageMetadata(offset, target.tensor.shape)
            else:
                chunk = ChunkStorageMetadata(torch.Size((0,) * target.dim()), target.shape)
            items += create_read_items_for_chunk_list(key, stored, [chunk])
        return LoadPlan(items)

    def resolve_tensor(self, read_item: Any) -> Tensor:
        """The part of this rank's tensor that a read fills."""
        target = self._targets[read_item.dest_index.fqn]
        tensor = target.tensor if isinstance(target, ClassRows) else target
        place = tuple(slice(o, o + n) for o, n in zip(read_item.dest_offsets, read_item.lengths, strict=True))
        return tensor.detach()[place]

    def commit_tensor(self, read_item: Any, tensor: Tensor) -> None:
        """Reads go straight into place."""

    def load_bytes(self, read_item: Any, value: Any) -> None:
        """Refuse: nothing but tensors is ever read this way.

        Raises:
            TypeError: always.
        """
        raise TypeError("a checkpoint of this package holds tensors only.")
