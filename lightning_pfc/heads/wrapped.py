"""Heads inside wrappers, and beside code, that take every parameter for a copy of rank 0's.

DDP, and what is made of it (Fabric, accelerate), broadcasts rank 0's rows over those of the other ranks and averages
gradients of different classes; without an error where shards are of one size. It is refused while it is being built,
before it overwrites anything. Whatever else does the same is known by what it leaves: rows, or gradients of rows, that
are another rank's bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from lightning_pfc.distributed import Comm
from lightning_pfc.distributed.bits import bit_sum
from lightning_pfc.distributed.class_rows import class_rows

if TYPE_CHECKING:
    from lightning_pfc.heads.sharded_centers import ShardedCenters

_EVERY = 100  # training forwards between two looks, after the 1st, 2nd, 4th, 8th, ...
_WAY_OUT = (
    'Use Trainer(strategy="pfc"). In a script without a Trainer build the head after '
    "torch.distributed.init_process_group and wrap the backbone alone, as in DistributedDataParallel(backbone), with "
    "the head beside it: it reduces its own gradients."
)
_hooked: list[RemovableHandle] = []


def watch_wrappers(kind: type[ShardedCenters]) -> None:
    """From now on it is a RuntimeError to build DDP around a sharded head; doing it again changes nothing.

    A hook of every registration of a submodule in this process, which takes less than a microsecond.

    Args:
        kind: the class of heads.
    """
    if not _hooked:
        _hooked.append(register_module_module_registration_hook(partial(_refuse_ddp, kind)))


def _refuse_ddp(kind: type[ShardedCenters], parent: nn.Module, name: str, child: nn.Module | None) -> None:
    if not isinstance(parent, DistributedDataParallel) or child is None:
        return
    ignored: set[str] = parent.parameters_to_ignore
    for path, module in child.named_modules():
        if isinstance(module, kind) and _is_divided(module):
            names = [f"{path}.{key}" if path else key for key in module.sharded_tensors()]
            taken = [key for key in names if key not in ignored]
            if taken:
                raise RuntimeError(foreign_wrapper_message(f"{type(parent).__name__} takes {taken[0]}"))


def _is_divided(head: ShardedCenters) -> bool:
    if head.is_sharded:
        return head.comm.shard_size > 1
    return dist.is_initialized() and dist.get_world_size() > 1


def foreign_wrapper_message(what: str) -> str:
    """The one text for a head in the hands of something that knows no shards."""
    return (
        f"{what} for a copy of rank 0's, but on each rank a PartialFC head has the centers of other classes: they "
        f"would be overwritten, or averaged with those of other classes. {_WAY_OUT}"
    )


class RowWatch:
    """Two numbers that travel with a head's exchange now and then: of its first row, and of the gradient it last took.

    Different classes never have the same, so ranks that do have been overwritten, or averaged.
    """

    def __init__(self) -> None:
        self._forwards = 0

    def numbers(self, head: ShardedCenters) -> list[int]:
        """To be called on every rank for each forward; zeros where there is nothing to compare, or it is not time.

        Raises:
            RuntimeError: if the centers are no longer an ordinary Parameter of this rank's rows.
        """
        if head.comm.shard_size == 1 or not head.training:
            return [0, 0]
        weight = head.weight
        if type(weight) is not nn.Parameter or weight.shape[0] != head.shard.num_local:
            raise RuntimeError(foreign_wrapper_message(f"something took head.weight (now {type(weight).__name__})"))
        count, self._forwards = self._forwards, self._forwards + 1
        if (count & (count - 1) and count % _EVERY) or _is_capturing(weight):
            return [0, 0]
        record = class_rows(weight)
        return [_fingerprint(weight.detach()[0]), _fingerprint(record.stepped if record is not None else None)]

    @staticmethod
    def judge(said: Sequence[Sequence[int]], comm: Comm) -> None:
        """Compare what the ranks of each shard group said.

        Raises:
            RuntimeError: on every rank, naming two that have the same.
        """
        for place, what in enumerate(("the centers", "the gradients of the centers")):
            seen: dict[tuple[int, int], int] = {}
            for rank, numbers in enumerate(said):
                key = (rank // comm.shard_size, numbers[place])
                if numbers[place] and key in seen:
                    raise RuntimeError(
                        foreign_wrapper_message(
                            f"{what} of rank {rank} are those of rank {seen[key]}, bit for bit: something (broadcast, "
                            "all_reduce, an averaging optimizer, the same seed on every rank) took them"
                        )
                    )
                seen[key] = rank


def _fingerprint(row: Tensor | None) -> int:
    """The bits of a row; 0 of one without differences, such as zeros, which classes may well have in common."""
    if row is None or row.numel() < 2 or bool((row == row[0]).all()):
        return 0
    return int(bit_sum(row))


def _is_capturing(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
