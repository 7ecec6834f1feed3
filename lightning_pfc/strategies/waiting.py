"""Whether a rank that goes on could wait for one that does not, in DDP, where nobody can tell it why."""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

_BEGINNING = 2  # steps; in the second one DDP agrees on its buckets
_BLOCKING = ("TORCH_NCCL_BLOCKING_WAIT", "NCCL_BLOCKING_WAIT")


def waits_before_head(model: Any, steps: int) -> bool:
    """Whether the host may wait for other ranks between the start of a step and the message of its first head.

    The broadcast of buffers with which DDP begins a forward pass is waited for on a CPU; NCCL's is given to the GPU,
    and the host goes on to the head, where it hears of errors.

    Args:
        model: what the strategy calls.
        steps: that it was called before.
    """
    if not isinstance(model, DistributedDataParallel):
        return False
    if steps < _BEGINNING:
        return True
    sends_buffers: bool = model.will_sync_module_buffers()  # type: ignore[no-untyped-call]
    return sends_buffers and _host_waits(model)


def _host_waits(model: DistributedDataParallel) -> bool:
    on_gpu = all(buffer.is_cuda for buffer in model.modules_buffers)
    is_nccl = "nccl" in str(dist.get_backend(model.process_group))
    return not (on_gpu and is_nccl) or any(os.environ.get(name, "0") not in ("", "0") for name in _BLOCKING)
