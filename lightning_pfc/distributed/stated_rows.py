"""Rows in a state dict: they say which part of a whole they are, to whoever saves them without knowing heads.

``torch.distributed.checkpoint`` takes a plain tensor for one that every rank has, and keeps one rank's. It asks a
tensor that knows better, as ``DTensor`` does; so does :class:`StatedRows`, of which a state dict of several ranks is
made. Where it is asked for everything (``full_state_dict=True``) it gets everything.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from lightning_pfc.distributed.collectives import all_gather_uneven
from lightning_pfc.distributed.comm import Comm
from lightning_pfc.distributed.shard import ClassShard

_SAFETENSORS = "safetensors.torch"  # reads a tensor's memory, where others pickle it
_FUNCTIONS = "torch.distributed.checkpoint.state_dict"
_COPIES = {"detach", "clone", "cpu", "cuda", "to", "contiguous", "pin_memory", "float", "double", "half", "bfloat16"}
_warned: set[str] = set()


class StatedRows(Tensor):
    """Rows ``shard.start`` to ``shard.stop`` of a tensor with a row per class; computed with, an ordinary tensor.

    Attributes:
        shard: which rows.
    """

    shard: ClassShard

    @classmethod
    def of(cls, rows: Tensor, shard: ClassShard) -> Self:
        """The same storage, with its place said."""
        stated = rows.as_subclass(cls)
        stated.shard = shard
        return stated

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What copies rows keeps their place; anything else gives an ordinary tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        first = args[0] if args else None
        if func is Tensor.data_ptr and sys._getframe(1).f_globals.get("__name__") == _SAFETENSORS:
            warn_of_one_ranks_file(args[0].shard)
        if isinstance(result, Tensor) and result is not first and isinstance(first, cls):
            name = getattr(func, "__name__", "")
            if name == "new_empty" or (name in _COPIES and result.shape == first.shape):  # new_empty: an async_save
                return cls.of(result, first.shard)
            return plain_rows(result)
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo[id(self)] = copied = type(self).of(plain_rows(self).detach().clone(), self.shard)
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        # In a file it is an ordinary tensor, read without this class. Whoever writes one writes one rank's rows.
        warn_of_one_ranks_file(self.shard)
        return plain_rows(self).__reduce_ex__(protocol)

    # -- what torch.distributed.checkpoint asks: four attributes since 2.14, and before it three methods, with which it
    # writes all rows and reads them where the number of ranks is the same; it refuses to read them elsewhere

    @property
    def global_shape(self) -> tuple[int, ...]:
        """Of all rows."""
        return (self.shard.num_classes, *self.shape[1:])

    @property
    def global_offsets(self) -> tuple[tuple[int, ...], ...]:
        """Where these are among them."""
        return ((self.shard.start, *(0 for _ in self.shape[1:])),)

    @property
    def local_offsets(self) -> tuple[tuple[int, ...], ...]:
        """Where they are in this tensor: it has no others."""
        return (tuple(0 for _ in self.shape),)

    @property
    def local_sizes(self) -> tuple[tuple[int, ...], ...]:
        """How many."""
        return (tuple(self.shape),)

    def _chunk(self) -> Any:
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

        return ChunkStorageMetadata(torch.Size(self.global_offsets[0]), torch.Size(self.shape))

    def __create_write_items__(self, fqn: str, tensor: Any) -> list[Any]:
        from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties
        from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

        chunk, whole = self._chunk(), torch.Size(self.global_shape)
        data = TensorWriteData(chunk=chunk, properties=TensorProperties(dtype=self.dtype), size=whole)
        return [WriteItem(index=MetadataIndex(fqn, chunk.offsets), type=WriteItemType.SHARD, tensor_data=data)]

    def __create_chunk_list__(self) -> list[Any]:
        return [self._chunk()]

    def __get_tensor_shard__(self, index: Any) -> Tensor:
        return plain_rows(self)  # type: ignore[no-any-return]


def plain_rows(value: Any) -> Any:
    """An ordinary tensor on the storage of a :class:`StatedRows`; anything else as it is."""
    if not isinstance(value, StatedRows):
        return value
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(Tensor)


@torch.no_grad()
def stated_rows(rows: Tensor, shard: ClassShard, comm: Comm) -> Tensor:
    """What a state dict holds of this rank's rows.

    Args:
        rows: (c, ...) this rank's.
        shard: which they are.
        comm: who has the others.

    Returns:
        ``rows``, which say their place; (C, ...), gathered by a collective on every rank, where a function of
        ``torch.distributed.checkpoint.state_dict`` was asked for the full state dict, which is one of every rank too.
    """
    if comm.shard_size == 1 or type(plain_rows(rows)) not in (Tensor, torch.nn.Parameter):
        return rows  # a DTensor says its own place
    if not full_is_asked_for():
        return StatedRows.of(plain_rows(rows), shard)
    sizes = [ClassShard(shard.num_classes, rank, comm.shard_size).num_local for rank in range(comm.shard_size)]
    return all_gather_uneven(plain_rows(rows), sizes, comm.shard_group)


def own_rows(value: Any, name: str, shard: ClassShard, held: int) -> Any:
    """This rank's part of what a state dict holds of rows, all of them or its own.

    Args:
        value: of the state dict.
        name: of it, for a message.
        shard: which rows are this rank's.
        held: how many rows its tensor has here; nothing is taken away where these are not the shard's.

    Raises:
        RuntimeError: for one rank's rows where a function of ``torch.distributed.checkpoint.state_dict`` was told that
            they are everybody's, and so gave them to every rank.
    """
    value = plain_rows(value)
    is_no_part = shard.num_local == shard.num_classes or held != shard.num_local
    if not isinstance(value, Tensor) or value.dim() == 0 or is_no_part:
        return value
    if value.shape[0] == shard.num_classes:
        return value[shard.start : shard.stop]
    if full_is_asked_for():
        raise RuntimeError(
            f"{name} has {value.shape[0]} rows, and full_state_dict=True (broadcast_from_rank0=True) says that these "
            f"are all, but a PartialFC head has {shard.num_classes} classes: they are one rank's. Get the state dict "
            "with full_state_dict=True too, or load each rank's own without it."
        )
    return value


def full_is_asked_for() -> bool:
    """Whether the caller is a function of torch whose ``StateDictOptions`` say ``full_state_dict=True``."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == _FUNCTIONS:
            given: Any = frame.f_locals.get("info") or frame.f_locals.get("options")
            if hasattr(given, "full_state_dict"):
                return bool(given.full_state_dict or given.broadcast_from_rank0)
        frame = frame.f_back
    return False


def warn_of_one_ranks_file(shard: ClassShard) -> None:
    """Say, once in a process, that what is being pickled or written has one rank's rows alone."""
    if "file" in _warned:
        return
    _warned.add("file")
    warnings.warn(
        f"a state dict or module is written that holds the classes {shard.start} to {shard.stop - 1} of "
        f"{shard.num_classes}, those of this rank's PartialFC head alone: with each rank's own file nothing is lost, "
        "with rank 0's alone the others are. torch.distributed.checkpoint.save(model.state_dict()) writes all, and "
        "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) gives all to every rank.",
        stacklevel=4,
    )
