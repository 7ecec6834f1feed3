"""One step of a head on tensors without storage: every operator of forward, backward and optimizer, and no memory.

A step of a million classes is counted in a second on a machine without a GPU. The tensors are on PyTorch's device
"meta", which the head treats as it treats a GPU: sizes that do not depend on values, and nothing that waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_pfc.distributed.class_rows import class_rows
from lightning_pfc.heads import PartialFC
from lightning_pfc.planning.work import Work, WorkLog

META = torch.device("meta")


class FakeStep(NamedTuple):
    """What a step makes a device do.

    Attributes:
        forward: draw, gather, loss.
        backward: gradients, and the update of the centers where it is done there.
        optimizer: the rest.
    """

    forward: list[Work]
    backward: list[Work]
    optimizer: list[Work]

    @property
    def works(self) -> list[Work]:
        """All of it, in order."""
        return [*self.forward, *self.backward, *self.optimizer]


def fake_head(**options: Any) -> PartialFC:
    """A head whose centers and buffers have a shape and no values.

    Args:
        options: as :class:`~lightning_pfc.PartialFC` takes them.
    """
    head = PartialFC(**options)
    for name, parameter in list(head._parameters.items()):
        if parameter is not None:
            head._parameters[name] = _fake_parameter(head, name, parameter)
    for name, buffer in list(head._buffers.items()):
        if buffer is not None:
            head._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=META)
    head.__dict__["_ensure_storage"] = lambda: None  # it would take these for tensors that are still to be made
    return head


def _fake_parameter(head: PartialFC, name: str, parameter: Tensor) -> nn.Parameter:
    shape = parameter.shape
    if name in head.sharded_tensors():
        shape = torch.Size((head.shard.num_local, *shape[1:]))
    made = nn.Parameter(torch.empty(shape, dtype=parameter.dtype, device=META))
    vars(made).update(vars(parameter))
    return made


def fake_step(
    head: PartialFC,
    make_optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
    batch: int,
    embedding_dtype: torch.dtype = torch.float32,
) -> FakeStep:
    """The second step of a head, which finds everything that the first one makes.

    Args:
        head: from :func:`fake_head`.
        make_optimizer: gives the optimizer of the head's parameters.
        batch: B, rows of this rank.
        embedding_dtype: in which embeddings come.
    """
    optimizer = make_optimizer(list(head.parameters()))
    logs: list[list[Work]] = []
    for _ in range(2):
        x = torch.empty(batch, head.embedding_dim, dtype=embedding_dtype, device=META, requires_grad=True)
        labels = torch.empty(batch, dtype=torch.int64, device=META)
        with WorkLog() as forward:
            loss = head(x, labels)
        with WorkLog() as backward:
            loss.backward()
        as_a_device_leaves_them(optimizer)
        with WorkLog() as after:
            optimizer.step()
            optimizer.zero_grad()
        logs = [forward.works, backward.works, after.works]
    return FakeStep(*logs)


def as_a_device_leaves_them(optimizer: torch.optim.Optimizer) -> None:
    """Give row-sparse gradients their entries back, which autograd loses on the way on tensors without storage."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            record = class_rows(parameter)
            if record is None or record.given is None or parameter.grad is None or not parameter.grad.is_sparse:
                continue
            index = record.given.index
            values = parameter.new_empty((index.shape[0], *parameter.shape[1:]))
            parameter.grad = torch.sparse_coo_tensor(index[None], values, parameter.shape, check_invariants=False)
