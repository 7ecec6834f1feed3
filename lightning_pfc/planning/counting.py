"""What a step really sends: collectives counted as they are called, bytes as the kernel counts them on the sockets."""

from __future__ import annotations

import os
import socket
import struct
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_TCP_INFO_BYTES_SENT = 200  # offset of tcpi_bytes_sent in struct tcp_info of linux/tcp.h, since Linux 4.19


class Call(NamedTuple):
    """One collective of this rank.

    Attributes:
        name: of the operation, as ``torch.ops.c10d`` names it.
        bytes: size of what it works on: all ranks' parts for a gather or a scatter, one rank's for a reduction.
        ranks: how many take part.
    """

    name: str
    bytes: int
    ranks: int

    @property
    def sent(self) -> float:
        """Bytes that this rank sends at least, on average over the ranks: what a ring sends."""
        share = (self.ranks - 1) / self.ranks
        return (2 if "allreduce" in self.name else 1) * share * self.bytes


class CollectiveLog(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While open, lists the collectives that this thread calls, in whatever way it calls them.

    Attributes:
        calls: in order.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []

    @property
    def sent(self) -> float:
        """Bytes that this rank sends, if every collective is as good as a ring."""
        return sum(call.sent for call in self.calls)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.calls.append(_describe(func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def _describe(func: Any, args: Any, kwargs: Any) -> Call:
    name = func._schema.name.removeprefix("c10d::")
    leaves = tree_leaves((args, kwargs))
    sizes = [x.numel() * x.element_size() for x in leaves if isinstance(x, Tensor)]
    ranks = next(_group_size(x) for x in leaves if isinstance(x, torch.ScriptObject) and _group_size(x))
    # A gather has its parts and their union among the arguments, a scatter too; a reduction has what it works on, once.
    whole = "allreduce" in name or name == "reduce_" or "broadcast" in name
    return Call(name, sum(sizes) if whole else max(sum(sizes) - min(sizes), max(sizes)), ranks)


def _group_size(box: Any) -> int:
    import torch.distributed as dist

    try:
        return dist.ProcessGroup.unbox(box).size()
    except (RuntimeError, TypeError):
        return 0


def bytes_sent() -> int:
    """Bytes that this process has sent over all its open TCP connections, as the kernel counts them (Linux).

    Other processes on the machine do not matter, and neither do headers of packets.

    Raises:
        OSError: where the kernel does not say.
    """
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.type != socket.SOCK_STREAM:
                    continue
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES_SENT + 8)
        except FileNotFoundError:  # closed since it was listed
            continue
        if len(info) < _TCP_INFO_BYTES_SENT + 8:
            raise OSError("this kernel does not count the bytes of a connection; Linux 4.19 or later does.")
        total += struct.unpack_from("=Q", info, _TCP_INFO_BYTES_SENT)[0]
    return total
