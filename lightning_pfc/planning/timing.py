"""How long a step of the head takes, term by term."""

from __future__ import annotations

from lightning_pfc.planning.machine import Machine
from lightning_pfc.planning.setup import Setup
from lightning_pfc.planning.traffic import head_traffic
from lightning_pfc.planning.words import BYTES

_SCORE_PASSES = 12  # reads and writes of every score beside the products, forward and backward
# Of rows that are drawn and kept in a CPU's memory, as seen: seconds to find one, passes over it in the optimizer's
# buffers, and seconds that a step with them begins with.
_FOUND, _PASSES, _BEGUN = 1e-6, 24, 5e-3
_TRAINING = 3  # a backward pass costs two forward passes


def head_seconds(setup: Setup, machine: Machine) -> dict[str, float]:
    """Seconds of a step, by what they are spent on. Nothing is taken to overlap."""
    s, k = setup, setup.sampled_rows
    products = 6 * s.group_batch * k * s.dim
    kept = s.memory_budget // s.kept_bytes
    products += 2 * s.dim * max(0, s.group_batch * k - kept)  # computed again in the backward pass
    stored = BYTES[s.dtype]
    gathered = k * s.dim * (2 * stored + 6 * 4)  # read twice, norms, gradient written and read
    moved = s.rows if s.is_dense else k
    state = BYTES["float32" if s.is_dense else s.state_dtype]
    update = moved * s.dim * (2 * stored + 4 + 2 * state * s.state_tensors)
    finding, kept_in = 0.0, machine.host_bandwidth if s.is_offloaded else machine.bandwidth
    if (s.device == "cpu" or s.is_offloaded) and k < s.rows:
        finding = _BEGUN + _FOUND * k
        update = update if s.is_dense else max(update, _PASSES * 4 * k * s.dim)
    messages = head_traffic(s)
    drawn = 0.0 if s.budget >= s.classes else 60 * 8 * s.budget / machine.bandwidth
    # rows come once where they go ahead, else twice, forward and backward; gradients go back in float32
    times = 1 if s.goes_ahead else 2
    bus = k * s.dim * (times * stored + 4) / machine.bus if s.is_offloaded else 0.0
    # read and written once more, where the bus takes them from; all rows need no gathering
    staged = 2 * stored * k * s.dim if s.is_offloaded and k < s.rows else 0
    return {
        "matrix products": products / machine.product_flops(s.product),
        "scores": _SCORE_PASSES * 4 * s.group_batch * k / machine.bandwidth,
        "centers": gathered / machine.bandwidth,
        "optimizer": update / kept_in,
        "rows gathered on the host": staged / kept_in,
        "rows over the bus": bus,
        "drawing": drawn,
        "finding rows": finding,
        "sending": sum(m.bytes / machine.sending_speed(m.spans) + machine.latency for m in messages),
    }


def backbone_seconds(setup: Setup, machine: Machine, gflops: float) -> float:
    """Seconds of the backbone's forward and backward pass, with ``gflops`` multiply-adds an image forward."""
    return _TRAINING * 2e9 * gflops * setup.batch / machine.backbone_flops
