"""The ranks that share an evaluation: sums and concatenations, identity for one process."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors


@dataclass(frozen=True)
class Peers:
    """This process among those that evaluate together.

    Attributes:
        rank: Number of this process.
        world_size: How many there are.
        group: Their process group; None for one process.
    """

    rank: int = 0
    world_size: int = 1
    group: dist.ProcessGroup | None = None

    @staticmethod
    def current() -> Peers:
        """The default process group if there is one, else one process. No collective."""
        if not (dist.is_available() and dist.is_initialized()):
            return Peers()
        return Peers(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)

    def share(self, count: int) -> range:
        """This rank's contiguous part of ``count`` things; parts differ by one at most."""
        return range(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, one all-reduce; the result is on the CPU."""
        if self.group is None:
            return values.cpu()
        moved = values.to(self._device()).clone()
        dist.all_reduce(moved, group=self.group)
        return moved.cpu()

    def cat(self, rows: Tensor) -> Tensor:
        """Rows of all ranks in rank order, (n, ...) with any n; one or two all-gathers; the result is on the CPU."""
        if self.group is None:
            return rows.cpu()
        return torch.cat(gather_all_tensors(rows.to(self._device()), self.group)).cpu()

    def _device(self) -> torch.device:
        if self.group is not None and dist.get_backend(self.group) == "nccl":
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")
