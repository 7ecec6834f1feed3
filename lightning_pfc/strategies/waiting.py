"""Whether a rank that goes on could wait for one that does not, where nobody can tell it why."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

_BLOCKING = ("TORCH_NCCL_BLOCKING_WAIT", "NCCL_BLOCKING_WAIT")


def waits_before_head(model: Any) -> bool:
    """Whether the host may wait for other ranks between the start of a step and the message of its first head.

    The broadcast of buffers with which DDP begins a forward pass is waited for on a CPU; NCCL's is given to the GPU,
    and the host goes on to the head, where it hears of errors. Before a forward pass DDP agrees on its buckets once,
    and ``SyncBatchNorm`` on the numbers of rows, which its host reads. The same on every rank.

    Args:
        model: what the strategy calls.
    """
    if not isinstance(model, DistributedDataParallel):
        return False
    if _agrees_on_buckets(model) or (model.will_sync_module_buffers() and _host_waits(model)):  # type: ignore[no-untyped-call]
        return True
    return any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())


def check_same_end(last: Sequence[bool], trainer: Any) -> None:
    """Refuse an epoch that ends on some ranks while others have more batches; the same on every rank.

    Args:
        last: of each rank, whether this batch was the last one.
        trainer: where it is in the epoch.

    Raises:
        RuntimeError: naming the ranks, the batch and the ways out.
    """
    if all(last) or not any(last):
        return
    ended, others = ([rank for rank, each in enumerate(last) if each is done] for done in (True, False))
    batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    raise RuntimeError(
        f"the training data of rank {', '.join(map(str, ended))} ended after {batches} batch(es) of epoch "
        f"{trainer.current_epoch}, that of rank {', '.join(map(str, others))} goes on: the ranks would wait for each "
        f"other for ever. Give every rank the same number of batches, or take so many of each: "
        f"Trainer(limit_train_batches={batches})."
    )


def _agrees_on_buckets(model: DistributedDataParallel) -> bool:
    """Whether DDP still has to: it does in the forward after the first backward whose gradients it averaged.

    With accumulated gradients that is not the second one. With ``find_unused_parameters`` it never does.
    """
    never = model.find_unused_parameters and not model.static_graph
    return not (never or model._has_rebuilt_buckets)


def _host_waits(model: DistributedDataParallel) -> bool:
    on_gpu = all(buffer.is_cuda for buffer in model.modules_buffers)
    is_nccl = "nccl" in str(dist.get_backend(model.process_group))
    return not (on_gpu and is_nccl) or any(os.environ.get(name, "0") not in ("", "0") for name in _BLOCKING)
