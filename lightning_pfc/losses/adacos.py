"""AdaCos: the scale of a cosine softmax, found from the batch instead of by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lightning_pfc.losses.base import Loss
from lightning_pfc.losses.batch_info import BatchInfo, State
from lightning_pfc.losses.margins import angle


@dataclass(frozen=True, kw_only=True)
class AdaCos(Loss):
    """A cosine softmax without margin whose scale adapts (AdaCos, arXiv:1905.00292, eq. 12 to 16).

    It begins at ``s = sqrt(2) log(C - 1)``; each training step sets ``s' = log(B_avg) / cos(min(pi/4, theta_med))``,
    where ``B_avg`` is the mean over the global batch of ``sum_j exp(s cos_j)`` over the negatives and ``theta_med``
    the median angle to the target. The paper uses s' in the step that gave it; here it counts from the next one,
    which spares a second pass over the classes. With negative sampling the sum is over the sampled classes, and the
    scale suits them.

    Args:
        dynamic: whether the scale adapts; False keeps the one of the beginning (the paper's fixed AdaCos).
        label_smoothing, interclass_filter: see :class:`Loss`.
    """

    scale: float = field(default=1.0, init=False)
    dynamic: bool = True

    linear_negatives: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_flag("dynamic")

    @property
    def one_label_only(self) -> str | None:
        """Where the scale adapts."""
        return "its scale follows the median angle of rows to their targets" if self.dynamic else None

    def initial_state(self, num_classes: int) -> State:
        """``scale``: sqrt(2) log(C - 1), for at least three classes."""
        return {"scale": torch.tensor(math.sqrt(2.0) * math.log(max(num_classes - 1, 2)), device="cpu")}

    def finish_state(self, state: State, batch: BatchInfo, negative_logsumexp: Tensor) -> None:
        """The next step's scale, from this one's sums; a batch without any negative changes nothing."""
        if not self.dynamic:
            return
        assert batch.target_cosine is not None
        wide = negative_logsumexp.double() if negative_logsumexp.device.type != "mps" else negative_logsumexp
        log_average = torch.logsumexp(wide, 0) - math.log(wide.shape[0])
        theta = angle(batch.target_cosine).median().clamp(max=torch.pi / 4)
        scale = (log_average / torch.cos(theta)).to(state["scale"].dtype)
        state["scale"].copy_(torch.where(scale > 0, scale, state["scale"]))

    def negative_logits(self, cosine: Tensor, batch: BatchInfo, state: State) -> Tensor:
        """``s cos_j`` with the scale of the state, (B, n) -> (B, n)."""
        return super().negative_logits(cosine, batch, state) * state["scale"]

    def target_logits(self, cosine: Tensor, batch: BatchInfo, state: State) -> Tensor:
        """``s cos_y`` with the scale of the state, (B,) -> (B,)."""
        return cosine * state["scale"]
