"""Which strategy owns the process group: ours, another one, or none.

A head is built by user code that hands it no group. Our strategy leaves its :class:`Comm` here for the heads that are
built after it, and a guard notes a foreign strategy, under which a sharded head would be overwritten by rank 0's shard.
"""

from __future__ import annotations

from dataclasses import dataclass

from lightning_pfc.distributed.comm import Comm


@dataclass(frozen=True)
class Owner:
    """The strategy that owns the process group.

    Attributes:
        name: the strategy's name for messages, such as "pfc" or "DDPStrategy".
        comm: what heads are to talk through; None for a strategy that cannot hold a sharded head.
    """

    name: str
    comm: Comm | None = None


_owner: Owner | None = None


def set_owner(name: str | None, comm: Comm | None = None) -> None:
    """Note who owns the process group from now on; ``None``: no strategy does."""
    global _owner  # one process group per process, hence one owner
    _owner = None if name is None else Owner(name, comm)


def get_owner() -> Owner | None:
    """Who owns the process group, if anyone said so."""
    return _owner


def foreign_strategy_message(name: str) -> str:
    """The one text for a sharded head under a strategy that cannot hold it."""
    return (
        f"A PartialFC head cannot train under {name}: it would broadcast rank 0's classes over every other rank's. Use "
        'Trainer(strategy="pfc") (after `import lightning_pfc`), or strategy=lightning_pfc.PartialFCStrategy(...).'
    )
