"""Who owns which classes, and how ranks talk: nothing here knows a model, a loss or Lightning."""

from lightning_pfc.distributed.agreement import Agreement
from lightning_pfc.distributed.comm import Comm
from lightning_pfc.distributed.shard import ClassShard

__all__ = ["Agreement", "ClassShard", "Comm"]
