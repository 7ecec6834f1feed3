"""Code of others that takes a norm over parameters, when a parameter is the shard of one rank.

An optimizer, or ``torch.nn.utils.clip_grad_norm_``, that adds something up over a parameter sees one rank's rows of a
Partial FC head only. Here the sum is made over all of them where that can be done, and refused by name where not.
"""

from lightning_pfc.optim.foreign.gradient import ShardGradient
from lightning_pfc.optim.foreign.shard import RowShard, row_shard
from lightning_pfc.optim.foreign.steps import check_optimizer
from lightning_pfc.optim.foreign.watching import watch

__all__ = ["RowShard", "ShardGradient", "check_optimizer", "row_shard", "watch"]
