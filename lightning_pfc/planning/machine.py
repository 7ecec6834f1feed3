"""What a rank runs on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The speeds that a step is made of.

    Attributes:
        name: of the device.
        memory: bytes of one rank's device.
        flops: of a matrix product in float32 as IEEE has it, per second.
        tf32_flops: in TF32; as ``flops`` where there is no such thing.
        half_flops: in bfloat16 or float16 with sums in float32.
        backbone_flops: of a backbone in mixed precision, per second, all told.
        bandwidth: bytes that memory reads and writes per second.
        link: bytes that a rank sends per second within its node.
        network: the same between nodes, per rank.
        latency: seconds of a collective that carries nothing.
        ranks_per_node: ranks that share a node.
        bus: bytes that a device reads of the host's memory per second, or writes there.
        host_bandwidth: bytes that the host's memory reads and writes per second, a rank's share.
        has_kernels: whether Triton's kernels run there: compute capability 8.0 or more.
    """

    name: str
    memory: float
    flops: float
    tf32_flops: float
    half_flops: float
    backbone_flops: float
    bandwidth: float
    link: float
    network: float
    latency: float = 30e-6
    ranks_per_node: int = 8
    bus: float = 24e9
    host_bandwidth: float = 40e9
    has_kernels: bool = False

    def product_flops(self, precision: str) -> float:
        """Of a matrix product in a precision of ``head.precision``; three float16 products count as one."""
        if precision == "float16x3":
            return self.half_flops / 3
        return {"float32": self.flops, "tf32": self.tf32_flops}.get(precision, self.half_flops)

    def sending_speed(self, spans: int) -> float:
        """Bytes that a rank sends per second in a collective over ``spans`` neighbouring ranks."""
        return self.link if spans <= self.ranks_per_node else self.network


_GB, _TFLOP = 1e9, 1e12
# Data sheets, dense: memory, products at 60 % of the peak, 80 % of memory bandwidth, NVLink or PCIe per direction, a
# network of 10 or 100 Gbit/s and more. The bus is PCIe x16 of the chip's generation per direction, 15.75, 31.5 or
# 63 GB/s, of which three quarters arrive. The host has two processors for eight ranks, of the time of the chip: memory
# of four channels of DDR4-2400 each (V100, 2080 Ti), eight of DDR4-3200 (A100, 4090), of DDR5-4800 (H100, H200, L40S)
# or of DDR5-5600 (B200). Backbones: a fifth of the peak of 16-bit products, which is what InsightFace's 5004 images/s
# of a ResNet-50 on eight V100 come to. A rough guide: nothing was timed here.
_PCIE3, _PCIE4, _PCIE5 = 15.75, 31.5, 63.0
_FOUR_2400, _EIGHT_3200, _EIGHT_4800, _EIGHT_5600 = (2 * n * speed * 8e-3 for n, speed in (
    (4, 2400), (8, 3200), (8, 4800), (8, 5600),
))  # fmt: skip
_SHEETS = (
    # name, GB, TFLOP/s in float32, TF32 and 16 bits, GB/s of memory, of a link, of the network, of the bus, of the host
    ("rtx2080ti", 11, 13.4, 13.4, 107, 616, 10, 1.2, _PCIE3, _FOUR_2400),
    ("v100-16", 16, 15.7, 15.7, 125, 900, 120, 1.2, _PCIE3, _FOUR_2400),
    ("v100-32", 32, 15.7, 15.7, 125, 900, 120, 1.2, _PCIE3, _FOUR_2400),
    ("a100-40", 40, 19.5, 156, 312, 1555, 240, 12, _PCIE4, _EIGHT_3200),
    ("a100-80", 80, 19.5, 156, 312, 2039, 240, 12, _PCIE4, _EIGHT_3200),
    ("rtx4090", 24, 82.6, 82.6, 165, 1008, 20, 1.2, _PCIE4, _EIGHT_3200),
    ("l40s", 48, 91.6, 183, 362, 864, 20, 12, _PCIE4, _EIGHT_4800),
    ("h100-80", 80, 67, 495, 989, 3350, 360, 40, _PCIE5, _EIGHT_4800),
    ("h200", 141, 67, 495, 989, 4800, 360, 40, _PCIE5, _EIGHT_4800),
    ("b200", 180, 75, 1100, 2250, 8000, 720, 40, _PCIE5, _EIGHT_5600),
)
_BEFORE_8 = ("rtx2080ti", "v100-16", "v100-32")  # compute capability
MACHINES = {
    name: Machine(
        name=name,
        memory=memory * _GB,
        flops=0.6 * single * _TFLOP,
        tf32_flops=0.6 * tf32 * _TFLOP,
        half_flops=0.6 * half * _TFLOP,
        backbone_flops=0.2 * half * _TFLOP,
        bandwidth=0.8 * bandwidth * _GB,
        link=link * _GB,
        network=network * _GB,
        bus=0.75 * bus * _GB,
        host_bandwidth=0.8 * host / 8 * _GB,
        has_kernels=name not in _BEFORE_8,
    )
    for name, memory, single, tf32, half, bandwidth, link, network, bus, host in _SHEETS
}
