"""What should be the same on every rank, compared bit for bit: one number each, and by name where they differ."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_pfc.distributed import Comm
from lightning_pfc.distributed.bits import bit_sum
from lightning_pfc.heads.partial_fc import iter_heads

_log = logging.getLogger(__name__)

Action = Literal["raise", "warn"]


class ReplicaWatch:
    """When the replicated parameters are compared, and what follows.

    After the optimizer steps 1, 2, 4, 8, ... and then every N, so that a program in which they drift apart ends soon
    after its start. The sums travel in a message that the ranks exchange anyway.

    Args:
        every_n_steps: optimizer steps between two checks.
        action: ``"raise"`` on every rank, or ``"warn"`` and go on.

    Raises:
        ValueError: if ``every_n_steps`` is not positive, or ``action`` is neither of the two.
    """

    def __init__(self, every_n_steps: int = 100, action: Action = "raise") -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps} must be at least 1.")
        if action not in ("raise", "warn"):
            raise ValueError(f"action={action!r} must be 'raise' or 'warn'.")
        self.every_n_steps = every_n_steps
        self.action: Action = action
        self._last = -1

    def is_due(self, step: int) -> bool:
        """Whether the weights after ``step`` optimizer steps are to be compared; once for each step."""
        due = step != self._last and (self._last < 0 or step & (step - 1) == 0 or step % self.every_n_steps == 0)
        self._last = step if due else self._last
        return due

    def judge(self, found: Sequence[Sequence[int]], replicas: Replicas, comm: Comm, step: int) -> None:
        """Compare the sums of all ranks, by rank; a collective where they differ.

        Raises:
            RuntimeError: on every rank, naming the first parameter that differs, and the ranks.
        """
        # Ranks with the same place in their groups have copies of the same centers.
        same = all(f[0] == found[0][0] and f[1] == found[rank % comm.shard_size][1] for rank, f in enumerate(found))
        if same:
            return
        message = replicas.difference(comm, step)
        if self.action == "raise":
            raise RuntimeError(message)
        if comm.rank == 0:
            _log.warning(message)

    def check(self, module: nn.Module, comm: Comm, step: int, left_out: Collection[str] = ()) -> None:
        """Compare now; every rank must call this. One exchange of the control channel, two if something differs.

        Raises:
            RuntimeError: as :meth:`judge`.
        """
        if comm.world_size > 1:
            replicas = Replicas(module, comm, left_out)
            self.judge(comm.agreement.exchange("replica_check", replicas.totals()), replicas, comm, step)


class Replicas:
    """Sums of the bits of each parameter that other ranks have as well.

    One pass over the memory, no copy; any order of a sum gives the same.

    Args:
        module: whose parameters; centers are nobody's copies, but for those of ``comm.num_replicas`` groups.
        comm: the ranks.
        left_out: names that differ on purpose.
    """

    def __init__(self, module: nn.Module, comm: Comm, left_out: Collection[str] = ()) -> None:
        sharded = {id(t): None for _, head in iter_heads(module) for t in head.sharded_tensors().values()}
        named = [(name, p) for name, p in module.named_parameters() if not p.is_meta]
        shared = [(name, p) for name, p in named if id(p) not in sharded and name not in left_out]
        copies = [(name, p) for name, p in named if id(p) in sharded] if comm.num_replicas > 1 else []
        self.names = [name for name, _ in (*shared, *copies)]
        self._shared = len(shared)
        self._sums = [bit_sum(tensor) for _, tensor in (*shared, *copies)]

    def totals(self) -> list[int]:
        """One number of what all ranks have, and one of what only ranks of the same place have."""
        return torch.stack([_mix(self._sums[: self._shared]), _mix(self._sums[self._shared :])]).tolist()

    def difference(self, comm: Comm, step: int) -> str:
        """Which parameter differs first, and where; one all-gather of a number for each parameter, on the CPU."""
        mine = torch.stack(list(self._sums)).cpu()
        gathered = [torch.empty_like(mine) for _ in range(comm.world_size)]
        dist.all_gather(gathered, mine, group=comm.agreement.group)
        for index, name in enumerate(self.names):
            apart = 1 if index < self._shared else comm.shard_size
            for first in range(apart):
                ranks = range(first, comm.world_size, apart)
                values = [int(gathered[rank][index]) for rank in ranks]
                if len(set(values)) > 1:
                    usual = max(values, key=values.count)
                    return _message(name, [r for r, v in zip(ranks, values, strict=True) if v != usual], step)
        return "replicas differ"


def _message(name: str, odd: list[int], step: int) -> str:
    return (
        f"parameter {name} of rank {', '.join(map(str, odd))} is not that of the other ranks at step {step}, though it "
        "is replicated: something steps, draws or writes on some ranks only (a norm over one rank's shard of the "
        "centers scales it, say), or memory has failed. Resume from a checkpoint taken before."
    )


def _mix(sums: Sequence[Tensor]) -> Tensor:
    """One number of many, in which their order counts."""
    if not sums:
        return torch.zeros((), dtype=torch.int64)
    several = len({each.device for each in sums}) > 1
    stacked = torch.stack([each.cpu() if several else each for each in sums])
    factors = torch.tensor(list(_odd_numbers(len(sums))), dtype=torch.int64, device=stacked.device)
    return (stacked * factors).sum().cpu()


def _odd_numbers(count: int) -> Iterator[int]:
    value = 1
    for _ in range(count):
        yield value if value < 1 << 63 else value - (1 << 64)
        value = value * 6364136223846793005 % (1 << 64)
