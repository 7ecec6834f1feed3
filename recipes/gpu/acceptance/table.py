"""The 18 tests with what they ask for. Milliseconds and gigabytes are those of one H200, 10^6 classes, 512 numbers."""

from __future__ import annotations

from dataclasses import replace

from acceptance import correctness, device, peers, speed, training
from acceptance.verdict import Bound, Check

NO_GPU = "it is about a GPU, and this is a CPU"
MUST_AIM = {
    (1.0, 1024): (12.2, 8.4), (1.0, 2048): (20.3, 13.4), (1.0, 4096): (36.7, 23.4), (1.0, 8192): (69.5, 43.3),
    (0.1, 1024): (1.35, 0.9), (0.1, 2048): (2.2, 1.4), (0.1, 4096): (3.8, 2.4), (0.1, 8192): (7.1, 4.4),
}  # fmt: skip
"""Milliseconds of a step by rate and batch: four products at 65 % of the ceiling and the state at 75 %; three at 80 %
and the state at 85 %."""

_PRECISION_BOUNDS = {"float32": (1e-6, 1e-5), "tf32": (1e-4, 1e-3), "bfloat16": (1e-3, 1e-2)}


def _numbers() -> tuple[Bound, ...]:
    bounds = []
    for precision, (loss, gradient) in _PRECISION_BOUNDS.items():
        bounds += [Bound(f"loss_{precision}", loss), Bound(f"dx_{precision}", gradient)]
        bounds += [Bound(f"dw_{precision}", gradient)]
    return (*bounds, Bound("share_of_cases", 1.0, at_least=True))


def _times() -> tuple[Bound, ...]:
    return tuple(Bound(speed.step_figure(*key), must, aim) for key, (must, aim) in MUST_AIM.items())


def _ratios() -> tuple[Bound, ...]:
    named = [Bound(name, *ratio, at_least=True, if_there=name != "linear_ce") for name, ratio in peers.RATIOS.items()]
    return (*named, Bound("cce", 1 / 1.2, at_least=True, if_there=True))


def _most(**bounds: float) -> tuple[Bound, ...]:
    return tuple(Bound(name, must) for name, must in bounds.items())


def _least(**bounds: float) -> tuple[Bound, ...]:
    return tuple(Bound(name, must, at_least=True) for name, must in bounds.items())


CEILINGS = (
    *_least(bf16_tflops=0.0, tf32_tflops=0.0, chunk_tflops=0.0, copy_tb_s=0.0),
    *_most(kernels_left_out=0.0),
)
MEMORY = _most(gb_B1024=0.4, gb_B8192=1.5, plan_B1024=0.15, plan_B8192=0.15)
CERTAIN = (Bound("dx_1e-4", 1e-2), Bound("dx_1e-6", 1e-2))
BUS = (*_least(share_of_bus=0.7), *_most(difference=1e-5))
WAITS = _most(waits=0.0, copies_back=0.0, allocations=0.0, checks_a_step=1.0, events_a_step=1.0)
SANITIZER = "compute-sanitizer over the kernels"
TRAINER = (Bound("failed_bf16-mixed", 0.0), Bound("failed_16-mixed", 0.0))

SECONDS = (25, 80, 8, 20, 10, 20, 20, 20, 70, 70, 15, 50, 30, 50, 12, 45, 45, 40)
"""Of the tests on an H200 by number, estimated, none was timed: shares of the time that all may take."""

_CHECKS = (
    Check(0, "ceilings of the device", speed.ceilings, CEILINGS, 4),
    Check(1, "numbers beside float64", correctness.against_float64, _numbers(), 100),
    Check(2, "gradient of a nearly certain target", correctness.nearly_certain_target, CERTAIN, 4),
    Check(3, "bfloat16 by number of classes", correctness.error_by_classes, _most(error=1e-3, drift=1e-3), 6),
    Check(4, "same bits twice, and the CPU's draw", correctness.same_bits, _least(same=1.0, draw=1.0), 6),
    Check(5, "indices above 2^31", correctness.large_indices, _most(loss=1e-5, dx=1e-3), 2),
    Check(6, "nothing waits for the device", device.waiting, WAITS, 60, NO_GPU, predicts=True),
    Check(7, "a graph replays the same bits", device.graph, _least(same_r1=1.0, same_r01=1.0), 200, NO_GPU),
    Check(8, "time of a step", speed.step_times, _times(), 4, predicts=True),
    Check(9, "times of others over ours", peers.peers, _ratios(), 2),
    Check(10, "memory of a step", speed.memory, MEMORY, 4, NO_GPU, predicts=True),
    Check(11, "how many classes", speed.many_classes, _most(ms_1e8=10.0, ms_3e7=10.0), 2),
    Check(12, "centers on the host", speed.rows_on_host, BUS, 6),
    Check(13, "torch.compile", training.compiled, _most(breaks_in_backbone=0, breaks_in_all=1, head_share=0.1), 3),
    Check(14, "gradient filter", training.gradient_filter, _most(time_ratio=0.4, error=1e-3), 4),
    Check(15, "Trainer, both half precisions", training.trainer, TRAINER, 1),
    Check(16, SANITIZER, device.sanitizer, _most(memcheck_errors=0.0, racecheck_errors=0.0), 2, NO_GPU),
    Check(17, "what a run learns", training.quality, _least(tar=training.LEARNED), 1),
)
CHECKS = tuple(replace(check, seconds=float(share)) for check, share in zip(_CHECKS, SECONDS, strict=True))
