"""Who a head talks to: ranks and groups as plain values, handed in, never looked up by the maths."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from lightning_pfc.distributed.agreement import Agreement
from lightning_pfc.distributed.aside import aside

# Of the present default group only: cleared, on every rank alike, when that group is another one than before. Never by
# garbage collection, which could clear it on one rank and leave the others alone in the collectives of a new build.
_CACHE: dict[tuple[dist.ProcessGroup, int], Comm] = {}
_cached_for: list[Any] = [None]


@dataclass(frozen=True, eq=False)
class Comm:
    """The ranks that train together, and among them those that share one set of classes.

    With ``head_group_size=G`` below the world size, the classes are sharded over groups of G neighbouring ranks and
    replicated across the ``world_size / G`` groups; by default one group holds all ranks.

    Attributes:
        rank, world_size: this rank among all that train together (and that DDP averages over).
        group: tensor collectives over all of them; None for a single process.
        shard_rank, shard_size: this rank among those that share the classes.
        shard_group: tensor collectives over those.
        replica_group: the ranks that hold the same classes as this one; None when there is only one copy.
        agreement: the control channel over all ranks, on the CPU.
    """

    rank: int = 0
    world_size: int = 1
    group: dist.ProcessGroup | None = None
    shard_rank: int = 0
    shard_size: int = 1
    shard_group: dist.ProcessGroup | None = None
    replica_group: dist.ProcessGroup | None = None
    agreement: Agreement = field(default_factory=Agreement)

    @staticmethod
    def single() -> Comm:
        """One process: no group, no collective."""
        return Comm()

    @staticmethod
    def from_group(
        group: dist.ProcessGroup | None = None,
        head_group_size: int | None = None,
        timeout: timedelta = timedelta(minutes=10),
    ) -> Comm:
        """Describe an initialised process group; the same object for the same group and size.

        Collective at its first call: it makes a gloo group for the control channel, and the sub-groups of a 2-D layout.

        Args:
            group: a ``torch.distributed`` group; None is the default group.
            head_group_size: how many ranks share one set of classes, a divisor of the world size; None is all of them.
            timeout: how long a rank waits for the others in the control channel.

        Raises:
            RuntimeError: without an initialised process group.
            ValueError: if ``head_group_size`` does not divide the world size.
        """
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError("Comm.from_group needs torch.distributed.init_process_group first; use Comm.single().")
        world = group if group is not None else dist.group.WORLD
        assert world is not None
        world_size, rank = dist.get_world_size(world), dist.get_rank(world)
        size = world_size if head_group_size is None else head_group_size
        if size < 1 or world_size % size:
            divisors = [d for d in range(1, world_size + 1) if world_size % d == 0]
            raise ValueError(f"head_group_size={size} does not divide the {world_size} ranks; use one of {divisors}.")
        if _cached_for[0] is not dist.group.WORLD:
            _CACHE.clear()
            _cached_for[0] = dist.group.WORLD
        if (world, size) not in _CACHE:
            _CACHE[world, size] = aside(lambda: _build(world, rank, world_size, size, timeout))
        return _CACHE[world, size]

    @property
    def num_replicas(self) -> int:
        """How many copies of the head there are."""
        return self.world_size // self.shard_size

    def __deepcopy__(self, memo: dict[int, Any]) -> Comm:
        return self  # process groups cannot be copied, and a copied head (EMA, SWA) talks to the same ranks

    def __reduce__(self) -> Any:
        # A pickled head (spawn, torch.save of a whole module) must not carry process groups: it is attached anew.
        return (_no_comm, ())


def forget_groups() -> None:
    """Let go of the process groups in every :class:`Comm` there is. For the end of a process: none works afterwards."""
    for comm in _CACHE.values():
        for name in ("group", "shard_group", "replica_group"):
            object.__setattr__(comm, name, None)  # heads, optimizers and callbacks keep their Comm to the end
        comm.agreement.group = None
    _CACHE.clear()
    _cached_for[0] = None


def _no_comm() -> None:
    return None


def _build(world: dist.ProcessGroup, rank: int, world_size: int, size: int, timeout: timedelta) -> Comm:
    ranks = dist.get_process_group_ranks(world)
    control: Any = dist.new_group(ranks, backend="gloo", timeout=timeout)
    agreement = Agreement(control, rank, world_size, timeout, shared_store())
    if size == world_size:
        return Comm(rank, world_size, world, rank, world_size, world, None, agreement)
    shard_group: Any = None
    replica_group: Any = None
    for first in range(0, world_size, size):
        made = dist.new_group(ranks[first : first + size])
        if first <= rank < first + size:
            shard_group = made
    for place in range(size):
        made = dist.new_group(ranks[place::size])
        if rank % size == place:
            replica_group = made
    return Comm(rank, world_size, world, rank % size, size, shard_group, replica_group, agreement)


def shared_store() -> Any:
    """The store behind the default group, None without one; torch has no public door to it."""
    try:
        return dist.distributed_c10d._get_default_store()
    except (AttributeError, ValueError, RuntimeError):
        return None
