"""Who owns which classes, and how ranks talk: nothing here knows a model, a loss or Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_pfc.names.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_pfc.distributed.agreement import Agreement
    from lightning_pfc.distributed.comm import Comm
    from lightning_pfc.distributed.shard import ClassShard

__all__ = ["Agreement", "ClassShard", "Comm"]

# What is here beside them (jobs, for one) needs no torch.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Agreement": "lightning_pfc.distributed.agreement",
        "Comm": "lightning_pfc.distributed.comm",
        "ClassShard": "lightning_pfc.distributed.shard",
    },
)
