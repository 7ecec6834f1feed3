"""What a rank runs on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The speeds that a step is made of.

    Attributes:
        name: of the device.
        memory: bytes of one rank's device.
        flops: of a matrix product in float32, per second.
        backbone_flops: of a backbone in mixed precision, per second, all told.
        bandwidth: bytes that memory reads and writes per second.
        link: bytes that a rank sends per second within its node.
        network: the same between nodes, per rank.
        latency: seconds of a collective that carries nothing.
        ranks_per_node: ranks that share a node.
    """

    name: str
    memory: float
    flops: float
    backbone_flops: float
    bandwidth: float
    link: float
    network: float
    latency: float = 30e-6
    ranks_per_node: int = 8

    def sending_speed(self, spans: int) -> float:
        """Bytes that a rank sends per second in a collective over ``spans`` neighbouring ranks."""
        return self.link if spans <= self.ranks_per_node else self.network


_GB, _TFLOP = 1e9, 1e12
# Data sheets: memory, float32 products (TF32 where there is such a thing) at 60 % of the peak, 80 % of memory
# bandwidth, NVLink or PCIe per direction, a network of 10 or 100 Gbit/s and more. Backbones: a fifth of the peak of
# 16-bit products, which is what InsightFace's 5004 images/s of a ResNet-50 on eight V100 come to. A rough guide:
# nothing was timed here.
_SHEETS = (
    # name, GB, float32 TFLOP/s, 16-bit TFLOP/s, GB/s of memory, GB/s of a link, GB/s of the network
    ("rtx2080ti", 11, 13.4, 107, 616, 10, 1.2),
    ("v100-16", 16, 15.7, 125, 900, 120, 1.2),
    ("v100-32", 32, 15.7, 125, 900, 120, 1.2),
    ("a100-40", 40, 156, 312, 1555, 240, 12),
    ("a100-80", 80, 156, 312, 2039, 240, 12),
    ("h100-80", 80, 495, 989, 3350, 360, 40),
)
MACHINES = {
    name: Machine(
        name=name,
        memory=memory * _GB,
        flops=0.6 * single * _TFLOP,
        backbone_flops=0.2 * half * _TFLOP,
        bandwidth=0.8 * bandwidth * _GB,
        link=link * _GB,
        network=network * _GB,
    )
    for name, memory, single, half, bandwidth, link, network in _SHEETS
}
