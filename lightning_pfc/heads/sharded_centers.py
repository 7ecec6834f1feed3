"""The life of the tensors that have a row per class: without storage, then this rank's rows, in memory or in files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from lightning_pfc.buffers.huge_pages import ask_for_huge_pages
from lightning_pfc.distributed.class_rows import declare_class_rows
from lightning_pfc.distributed.comm import Comm
from lightning_pfc.distributed.shard import ClassShard
from lightning_pfc.distributed.stated_rows import own_rows, stated_rows
from lightning_pfc.heads.birth import comm_after_birth, comm_at_birth
from lightning_pfc.heads.center_init import InitialCenters
from lightning_pfc.heads.options import as_seed
from lightning_pfc.heads.placement import Placement
from lightning_pfc.heads.unallocated import refuse_writes, refuse_written
from lightning_pfc.heads.wrapped import watch_wrappers
from lightning_pfc.optim.foreign import watch
from lightning_pfc.storage.row_files import RowFiles

LOSS_PREFIX, SAMPLER_PREFIX = "loss_", "sampler_"  # of what is not per class
MEMORY_PREFIX = "memory_"
"""What begins the names of buffers with what a loss remembers, a row per class."""

SAMPLED_PREFIX = "sampled_"
"""What begins the names of buffers with what a sampler knows, a row per class."""

_ROW_PREFIXES = (MEMORY_PREFIX, SAMPLED_PREFIX)


class ShardedCenters(nn.Module):
    """Its ``weight``, ``bias`` and buffers ``memory_...`` and ``sampled_...`` have a row per class, split over ranks.

    Args:
        num_classes: C, over all ranks.
        width: numbers of a row of ``weight``.
        has_bias: whether there is a ``bias``, one number a class, zero at first.
        seed: of the initial rows of ``weight``.
        initial_centers: how these are drawn.
        placement: where the rows are kept.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    _held: ClassShard | None = None  # of a copy out of a pickle

    def __init__(
        self,
        num_classes: int,
        width: int,
        has_bias: bool,
        seed: int,
        initial_centers: InitialCenters,
        placement: Placement,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.seed = as_seed(seed)
        self.initial_centers = initial_centers
        self.row_folder, self.rows_on = placement.row_folder, placement.rows_on
        self._build_device = placement.device
        self._comm: Comm | None = None
        dtype = placement.dtype
        self.weight = nn.Parameter(torch.empty((num_classes, width), dtype=dtype, device="meta"))
        self.bias = nn.Parameter(torch.empty(num_classes, dtype=dtype, device="meta")) if has_bias else None
        self._mark_parameters()

    def _start_life(self, comm: Comm | None) -> None:
        """Take this rank's rows if there are ranks already; to be called when everything is registered."""
        watch_wrappers(ShardedCenters)
        comm = comm or comm_at_birth()
        if comm is not None:
            self.attach(comm)
        else:
            for tensor in self.sharded_tensors().values():
                refuse_writes(tensor, self._planned_device)

    @property
    def comm(self) -> Comm:
        """Whom this head talks to; a single process until it is attached."""
        return self._comm if self._comm is not None else Comm.single()

    @property
    def init_std(self) -> float:
        """Standard deviation of the initial centers' numbers."""
        return self.initial_centers.std

    @init_std.setter
    def init_std(self, std: float) -> None:
        self.initial_centers = self.initial_centers._replace(std=std)

    @property
    def shard(self) -> ClassShard:
        """The classes of this rank; of a copy out of a pickle, those of the rank that wrote it."""
        if self._comm is None and self._held is not None:
            return self._held
        return ClassShard(self.num_classes, self.comm.shard_rank, self.comm.shard_size)

    @property
    def class_range(self) -> range:
        """Global class ids whose centers live here."""
        return self.shard.range

    @property
    def is_materialized(self) -> bool:
        """Whether the centers have storage."""
        return not self.weight.is_meta

    @property
    def is_sharded(self) -> bool:
        """Whether this head knows its ranks."""
        return self._comm is not None

    def attach(self, comm: Comm, device: torch.device | str | None = None) -> None:
        """Take this rank's shard: draw its centers, or keep its rows of a head that already holds all of them.

        Called by the strategy, on every rank, before optimizers are made; doing it again changes nothing. No
        collective.

        Args:
            comm: the ranks.
            device: where new storage goes; None keeps the device asked for at construction.

        Raises:
            ValueError: if there are more ranks than classes, or copies of a head that remembers.
            RuntimeError: if the head is already sharded over other ranks.
        """
        shard = ClassShard(self.num_classes, comm.shard_rank, comm.shard_size)
        if comm.num_replicas > 1 and any(name.startswith(MEMORY_PREFIX) for name in self._buffers):
            raise ValueError(
                f"The head is held in {comm.num_replicas} copies (head_group_size={comm.shard_size}), but an addition "
                "remembers something of every class, and the copies would drift apart; leave head_group_size out."
            )
        if self.is_materialized and self.weight.shape[0] != self.num_classes:
            old = self.shard
            if old != shard:
                raise RuntimeError(
                    f"This head already holds classes [{old.start}, {old.stop}) of rank {old.rank} of "
                    f"{old.world_size} and cannot become rank {shard.rank} of {shard.world_size} in place; load it "
                    "from a checkpoint instead."
                )
            self._comm = comm
            return
        if not self.is_materialized:
            self._allocate(shard, torch.device(device) if device is not None else self._build_device)
        elif shard.num_local < self.num_classes:
            if self.row_folder is not None:
                raise RuntimeError("A head whose centers are in files was used by one process and cannot be split now.")
            for name, tensor in self.sharded_tensors().items():
                part = tensor.detach()[shard.start : shard.stop].clone()
                if name in self._buffers:
                    self._buffers[name] = part
                    continue
                self._swap(name, nn.Parameter(part, requires_grad=tensor.requires_grad))
        self._comm = comm
        self._mark_parameters()

    def sharded_tensors(self) -> dict[str, Tensor]:
        """Parameters that differ by rank, by their name within the head; row i is class ``class_range[i]``."""
        found: dict[str, Tensor] = {"weight": self.weight}
        if self.bias is not None:
            found["bias"] = self.bias
        return found | {
            name: rows for name, rows in self._buffers.items() if name.startswith(_ROW_PREFIXES) and rows is not None
        }

    @property
    def _planned_device(self) -> torch.device:
        return torch.device("cpu") if self._build_device.type == "meta" else self._build_device

    def _allocate(self, shard: ClassShard, device: torch.device) -> None:
        refuse_written(self.sharded_tensors().values())
        if device.type == "meta":
            device = torch.device("cpu")

        def fill(out: Tensor) -> Tensor:
            return self.initial_centers.fill_(out, shard.start, self.seed)

        shape, dtype = (shard.num_local, self.weight.shape[1]), self.weight.dtype
        files = self._files(shard, device)
        if files is None and self.rows_on == "host":
            weight = fill(_host_rows(shape, dtype))
        elif files is None:
            weight = fill(ask_for_huge_pages(torch.empty(shape, dtype=dtype, device=device)))
        else:
            weight = files.tensor("weight", shape, dtype, fill)
        self._swap("weight", nn.Parameter(weight, requires_grad=self.weight.requires_grad))
        if files is not None:
            declare_class_rows(self.weight, shard).files = files
        if self.bias is not None:
            bias = torch.zeros(shard.num_local, dtype=self.bias.dtype, device=device)
            self._swap("bias", nn.Parameter(bias, requires_grad=self.bias.requires_grad))
        for name in [name for name in self._buffers if name.startswith(_ROW_PREFIXES)]:
            rows = self._buffers[name]
            assert rows is not None
            self._buffers[name] = torch.zeros((shard.num_local, *rows.shape[1:]), dtype=rows.dtype, device=device)

    def _files(self, shard: ClassShard, device: torch.device) -> RowFiles | None:
        if self.row_folder is None:
            return None
        self._check_files_fit(device)
        return RowFiles(self.row_folder / f"classes-{shard.start}-{shard.stop}")

    def _check_files_fit(self, device: torch.device) -> None:
        if self.rows_on == "device" and device.type != "cpu":
            raise ValueError(
                f"row_folder={str(self.row_folder)!r} keeps centers on the host, and this head goes to {device}: give "
                "rows_on='host'."
            )

    def _swap(self, name: str, new: nn.Parameter) -> None:
        """Give the Parameter ``name`` the contents of ``new``: optimizers that hold the object go on with it."""
        old = getattr(self, name)
        attributes = dict(vars(old))  # such as marks of an optimizer, which swap_tensors would carry away
        torch.utils.swap_tensors(old, new)  # type: ignore[no-untyped-call]
        vars(old).update(attributes)

    def _mark_parameters(self) -> None:
        for tensor in self.sharded_tensors().values():
            declare_class_rows(tensor, self.shard, self.comm)
            watch(tensor)

    def _ensure_storage(self) -> None:
        if self._comm is not None:
            return
        comm = comm_after_birth(self.shard)
        if comm is not None:
            self.attach(comm)
        elif not self.is_materialized:
            self._allocate(self.shard, self._build_device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `.to(device)` and friends: a tensor without storage cannot move, so it gets its storage first. Under a group
        # it must have been given its shard by then: the stock strategies would go on to overwrite it.
        if self._comm is None and self.shard.world_size == 1:
            self._ensure_storage()
        if getattr(fn, "__qualname__", "").startswith("Module.to_empty."):  # numbers at random are no centers
            device = fn(torch.empty(0)).device
            fn = partial(_kept, device=device)
        if self.rows_on == "host":
            fn = self._but_the_centers(fn)
        elif self.row_folder is not None:
            self._check_files_fit(fn(torch.empty(0)).device)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._mark_parameters()
        return self

    def _but_the_centers(self, fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        stay = [tensor for tensor in (self.weight, self.weight.grad) if tensor is not None]

        def moved(tensor: Tensor) -> Tensor:
            if not any(tensor is one for one in stay):
                return fn(tensor)
            # another dtype is taken over, another device is not; an empty tensor tells which was meant
            return tensor.to(dtype=fn(torch.empty(0, dtype=tensor.dtype)).dtype)

        return moved

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._mark_parameters()  # copies of parameters do not keep their attributes

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in () if keep_vars else self.sharded_tensors():
            if prefix + name in destination:  # some buffers are not saved
                destination[prefix + name] = stated_rows(destination[prefix + name], self.shard, self.comm)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool, *args: Any
    ) -> None:
        # A state dict may hold the whole head or this rank's shard; rows of a whole head are picked by class.
        if self._comm is None:
            self._ensure_storage()
        for name, tensor in self.sharded_tensors().items():
            if (key := prefix + name) in state_dict:
                state_dict[key] = own_rows(state_dict[key], key, self.shard, tensor.shape[0])
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *args)


def _kept(tensor: Tensor, device: torch.device) -> Tensor:
    return torch.zeros_like(tensor, device=device) if tensor.is_meta else tensor.to(device)


def _host_rows(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Rows in memory that a GPU reads by itself, where there is one."""
    if torch.cuda.is_available():
        return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=True)
    return ask_for_huge_pages(torch.empty(shape, dtype=dtype, device="cpu"))
