"""How long counted work takes on a device that is not there: bytes, operations and launches over stated speeds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from lightning_pfc.planning.work import Work


@dataclass(frozen=True, kw_only=True)
class Device:
    """The ceilings of a device, and which part of them a kernel reaches.

    Attributes:
        name: of the device.
        half: multiply-adds in bfloat16 or float16, times two, per second.
        tf32: the same in TF32.
        single: the same in float32.
        bandwidth: bytes that memory reads and writes per second.
        launch: seconds between two kernels that the host starts one by one.
        replayed: the same in a CUDA graph.
        products: part of a product's rate that a product reaches.
        memory: part of the bandwidth that a kernel reaches.
    """

    name: str
    half: float
    tf32: float
    single: float
    bandwidth: float
    launch: float = 5e-6
    replayed: float = 1.5e-6
    products: float = 0.75
    memory: float = 0.80

    def rate(self, dtype: torch.dtype | None, tf32: bool = False) -> float:
        """Operations per second of a product of operands in ``dtype``, as far as it reaches."""
        if dtype in (torch.bfloat16, torch.float16):
            return self.products * self.half
        return self.products * (self.tf32 if tf32 else self.single)


# Ceilings as measured on random data: 8192^3 products in bfloat16 769 to 798 TFLOP/s, a copy 4.3 TB/s. TF32 is 77 % of
# the data sheet, as bfloat16 is; float32 is what the plain units do.
H200 = Device(name="h200", half=788e12, tf32=380e12, single=52e12, bandwidth=4.3e12)


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step; *predicted*, never measured.

    Attributes:
        products: in matrix products.
        memory: in all other kernels, by the bytes that they move.
        started: until the host has started all kernels one by one.
        replayed: the same as a graph.
    """

    products: float
    memory: float
    started: float
    replayed: float

    @property
    def eager(self) -> float:
        """The step without a graph: the device waits for the host, or the host for the device."""
        return max(self.products + self.memory, self.started)

    @property
    def graph(self) -> float:
        """The step as a graph."""
        return max(self.products + self.memory, self.replayed)


def step_time(works: Iterable[Work], device: Device, tf32: bool = False) -> StepTime:
    """How long some work takes: each operator as long as its operations or its bytes, whichever is longer.

    Args:
        works: as :class:`~lightning_pfc.planning.work.WorkLog` lists it.
        device: what it runs on.
        tf32: whether float32 products may use TF32.
    """
    products = memory = 0.0
    launches = 0
    for work in works:
        launches += work.launches
        moving = work.bytes / (device.memory * device.bandwidth)
        if work.flops:
            products += max(work.flops / device.rate(work.dtype, tf32), moving)
        else:
            memory += max(moving, work.launches * device.replayed)
    return StepTime(products, memory, launches * device.launch, launches * device.replayed)
