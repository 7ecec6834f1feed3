"""The logarithm of a sum of exponentials whose terms come a chunk and a rank at a time."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_pfc.distributed.collectives import all_reduce
from lightning_pfc.kernels.sums import wide_dtype


class OnlineLogSumExp:
    """Running sums of ``exp(logit - offset)`` for B rows, with a fixed offset or the largest logit so far.

    Args:
        reference: the fixed offset where the logits are bounded; None keeps a running maximum.
        like: (B, ...) says how many rows, the device, and the dtype of the result.

    Attributes:
        sums: (B,), in float64 where there is such a thing: over many chunks and ranks it costs B numbers.
    """

    def __init__(self, reference: float | None, like: Tensor) -> None:
        self._reference, self._dtype = reference, like.dtype
        batch = like.shape[0]
        self.sums = like.new_zeros(batch, dtype=wide_dtype(like))
        self._maximum = like.new_full((batch,), -torch.inf if reference is None else reference)

    @property
    def offset(self) -> float:
        """What has to be subtracted from logits before they are added."""
        return self._reference or 0.0

    def add_(self, logits: Tensor) -> None:
        """Add the logits (B, n), less :attr:`offset`, of some classes; -inf adds nothing. They are overwritten."""
        if self._reference is None:
            higher = torch.maximum(self._maximum, logits.amax(1))
            # a row whose chunks hold no negative so far has maximum -inf; any finite offset will do for it
            finite = higher.clamp(min=torch.finfo(self._dtype).min)
            self.sums *= torch.exp(self._maximum - finite)
            self._maximum = higher
            logits.sub_(finite[:, None])
        self.sums += logits.exp_().sum(1)

    def agree_on_offset_(self, group: dist.ProcessGroup | None) -> None:
        """Make the sums of all ranks comparable. One all-reduce of a maximum, unless the offset is fixed."""
        if self._reference is None:
            overall = all_reduce(self._maximum.clone(), group, "max").clamp_(min=torch.finfo(self._dtype).min)
            self.sums *= torch.exp(self._maximum - overall)
            self._maximum = overall

    def logarithm(self, sums: Tensor) -> Tensor:
        """The result (B,) from the sums of all ranks.

        Without any term the sum is zero: a very low, finite logarithm keeps every derivative zero and not NaN.
        """
        return (sums.log() + self._maximum).clamp(min=-1e30).to(self._dtype)
