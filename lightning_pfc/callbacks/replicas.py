"""A check that what should be the same on every rank is."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from lightning_pfc.callbacks.ranks import comm_of
from lightning_pfc.distributed import Comm
from lightning_pfc.heads.partial_fc import iter_heads

_log = logging.getLogger(__name__)


class ReplicaCheck(Callback):
    """Compares the replicated parameters of all ranks every N steps, bit for bit.

    Replicas drift apart when something steps on one rank only, draws random numbers that differ, or when memory fails;
    training then goes on and is wrong. Each rank adds up the bits of every parameter as 64-bit integers (one pass over
    the memory, no copy, any order of the sum gives the same), and the ranks exchange one number each, in a message of
    1 KiB on the CPU. Only if they differ, the sums of all parameters are compared, to name the first that does.

    Centers are left out, since every rank has other ones; with ``head_group_size`` their copies are compared as well.

    Args:
        every_n_steps: optimizer steps between two checks.
        action: ``"raise"`` on every rank, or ``"warn"`` and go on.

    Raises:
        ValueError: if ``every_n_steps`` is not positive, or ``action`` is neither of the two.
    """

    def __init__(self, every_n_steps: int = 200, action: Literal["raise", "warn"] = "raise") -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps} must be at least 1.")
        if action not in ("raise", "warn"):
            raise ValueError(f"action={action!r} must be 'raise' or 'warn'.")
        self.every_n_steps = every_n_steps
        self.action = action
        self._last = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check what was loaded."""
        self._last = trainer.global_step
        self.check(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Check after every N optimizer steps."""
        if trainer.global_step != self._last and trainer.global_step % self.every_n_steps == 0:
            self._last = trainer.global_step
            self.check(trainer, pl_module)

    def check(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare now; every rank must call this. One exchange of the control channel, two if something differs.

        Raises:
            RuntimeError: on every rank, naming the first parameter that differs, and the ranks.
        """
        comm = comm_of(trainer)
        if comm.world_size == 1:
            return
        shared, copies = _replicated(pl_module, comm)
        sums = [bit_sum(tensor) for _, tensor in (*shared, *copies)]
        totals = [_mix(sums[: len(shared)]), _mix(sums[len(shared) :])]
        found = comm.agreement.exchange("replica_check", torch.stack(totals).tolist())
        # Ranks with the same place in their groups have copies of the same centers.
        same = all(f[0] == found[0][0] and f[1] == found[rank % comm.shard_size][1] for rank, f in enumerate(found))
        if not same:
            self._tell(trainer, comm, [name for name, _ in (*shared, *copies)], len(shared), sums)

    def _tell(self, trainer: L.Trainer, comm: Comm, names: list[str], shared: int, sums: Sequence[Tensor]) -> None:
        mine = torch.stack(list(sums)).cpu()
        gathered = [torch.empty_like(mine) for _ in range(comm.world_size)]
        dist.all_gather(gathered, mine, group=comm.agreement.group)
        message = "replicas differ"
        for index, name in enumerate(names):
            step = 1 if index < shared else comm.shard_size
            for first in range(step):
                ranks = range(first, comm.world_size, step)
                values = [int(gathered[rank][index]) for rank in ranks]
                if len(set(values)) > 1:
                    usual = max(values, key=values.count)
                    odd = [rank for rank, value in zip(ranks, values, strict=True) if value != usual]
                    message = (
                        f"parameter {name} of rank {', '.join(map(str, odd))} is not that of the other ranks at step "
                        f"{trainer.global_step}, though it is replicated: something steps, draws or writes on some "
                        "ranks only, or memory has failed. Resume from a checkpoint taken before."
                    )
                    break
            else:
                continue
            break
        if self.action == "raise":
            raise RuntimeError(message)
        if trainer.is_global_zero:
            _log.warning(message)


def _replicated(module: nn.Module, comm: Comm) -> tuple[list[tuple[str, Tensor]], list[tuple[str, Tensor]]]:
    """The parameters that all ranks have, and those that only ranks of the same place have."""
    sharded = {id(t): None for _, head in iter_heads(module) for t in head.sharded_tensors().values()}
    shared: list[tuple[str, Tensor]] = [(name, p) for name, p in module.named_parameters() if id(p) not in sharded]
    copies: list[tuple[str, Tensor]] = []
    if comm.num_replicas > 1:
        copies = [(name, p) for name, p in module.named_parameters() if id(p) in sharded]
    return shared, copies


@torch.no_grad()
def bit_sum(tensor: Tensor) -> Tensor:
    """The bits of a tensor added up as 64-bit integers, modulo 2^64; a 0-d int64 tensor on its device.

    A change of one value always changes it; two changes cancel with a probability of about 2^-32 or less.
    """
    data = tensor.detach()
    if not data.is_contiguous():  # in channels_last, say: the order of a sum does not matter
        data = data.permute(sorted(range(data.dim()), key=data.stride, reverse=True)).contiguous()
    raw = data.view(-1).view(torch.uint8)
    whole = raw.numel() // 8 * 8
    total = torch.zeros((), dtype=torch.int64, device=data.device)
    if raw.storage_offset() % 8:
        raw = raw.clone()
    if whole:
        total = raw[:whole].view(torch.int64).sum()
    if whole < raw.numel():
        tail = raw[whole:].to(torch.int64)
        total = total + (tail << (8 * torch.arange(tail.numel(), device=data.device))).sum()
    return total


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
