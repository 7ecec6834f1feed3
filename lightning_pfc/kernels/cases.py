"""What the kernels are compiled for ahead of time: calls at the size of a real head, on tensors without storage.

The calls go through the same functions that start the kernels, so what is compiled is what would run: the same tiles,
types and constants. 10^6 classes, D = 512, 1,024 rows, unless the label says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lightning_pfc.kernels.launching import Launch, recorded_launches
from lightning_pfc.kernels.tiles import pretended_chip

CLASSES, SAMPLED, WIDTH, BATCH = 1_000_000, 100_000, 512, 1024


def compile_cases(chip: int) -> Iterator[tuple[str, Launch]]:
    """Every kernel in every kind that is compiled, by name, as it is started on a chip."""
    seen: set[str] = set()
    for label, call in _calls():
        with pretended_chip(chip), recorded_launches() as launches:
            call()
        for launch in launches:
            name = launch.kernel.fn.__name__ + (f"_{label}" if label else "")
            if name not in seen:
                seen.add(name)
                yield name, launch


def _calls() -> Iterator[tuple[str, Callable[[], object]]]:
    yield from _softmax_calls()
    yield from _vector_calls()
    yield from _update_calls()
    yield "", _draw


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _softmax_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    from lightning_pfc.kernels.gpu import calls

    x, weight, index = _empty(BATCH, WIDTH), _empty(CLASSES, WIDTH), _empty(SAMPLED, dtype=torch.int64)
    targets, grad = _empty(BATCH, 1, dtype=torch.int64), _empty(BATCH, 1)
    several = _empty(BATCH, 4, dtype=torch.int64)
    rows = _empty(SAMPLED, WIDTH)
    scores, kept = _empty(BATCH, SAMPLED), _empty(BATCH, SAMPLED, dtype=torch.bfloat16)
    half, offsets = _empty(BATCH, SAMPLED, dtype=torch.float16), _empty(SAMPLED)
    small = _empty(CLASSES, WIDTH, dtype=torch.bfloat16)
    gather = calls.gather_normalize_round
    yield "bfloat16", lambda: gather(weight, index, torch.bfloat16, True)
    yield "float32", lambda: gather(weight, None, torch.float32, True)
    yield "bfloat16_rows", lambda: gather(small, index, torch.bfloat16, True)
    yield "", lambda: calls.project_rows_(rows, weight, index)
    yield "bfloat16_rows", lambda: calls.project_rows_(_empty(CLASSES, WIDTH), small, None)
    yield "width1024", lambda: gather(_empty(CLASSES, 1024), index, torch.bfloat16, True)
    yield "bfloat16", lambda: calls.exponentials_(scores, kept, 64.0, 4.0, targets, None, 0)
    yield "in_place", lambda: calls.exponentials_(half, kept, 64.0, 4.0, targets, None, 0)
    yield "several_targets", lambda: calls.exponentials_(scores, kept, 64.0, 4.0, several, offsets, 0)
    yield "", lambda: calls.target_cosines(x, weight, index, targets, True)
    yield "", lambda: calls.target_gradients_(x, weight, index, targets, grad, x, rows, True, 0, None)


def _vector_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    from lightning_pfc.kernels.gpu import vector_calls

    x, labels, numbers = _empty(BATCH, WIDTH), _empty(BATCH, dtype=torch.int64), _empty(BATCH)
    half, wide = _empty(BATCH, WIDTH, dtype=torch.bfloat16), _empty(BATCH, dtype=torch.float64)
    yield "", lambda: vector_calls.unit_embeddings(half)
    yield "", lambda: vector_calls.unit_embeddings_backward(x, numbers, x, numbers, torch.bfloat16)
    yield "", lambda: vector_calls.bad_rows(half, labels, CLASSES)
    yield "", lambda: vector_calls.own_columns(labels, 0, CLASSES)
    yield "", lambda: vector_calls.pack_sums(numbers, _empty(BATCH, 1), 1.0)
    yield "", lambda: vector_calls.unpack_sums(_empty(2, BATCH, dtype=torch.float64), 1, torch.float32)
    yield "", lambda: vector_calls.margin_logits(numbers, 64.0, 0.88, 0.48, 0.0, 0.99, True)
    yield "", lambda: vector_calls.begin_gradients(x, x, wide, numbers, 64.0, 0.0, torch.bfloat16)


def _update_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    from lightning_pfc.kernels.gpu import updating

    index, count = _empty(SAMPLED, dtype=torch.int64), _empty(1, dtype=torch.int64)[0]
    grad, options, scales = _empty(SAMPLED, WIDTH), _empty(5, dtype=torch.float64), _empty(CLASSES)
    common = (grad, index, count, options, count, 0, [0, 0])
    kinds = [("float32", torch.float32, torch.float32, torch.float32), ("int8", torch.float32, torch.int8, torch.uint8)]
    kinds += [("bfloat16", torch.bfloat16, torch.bfloat16, torch.bfloat16)]
    for label, dtype, first, second in kinds:
        weight = _empty(CLASSES, WIDTH, dtype=dtype)
        mean, square = _empty(CLASSES, WIDTH, dtype=first), _empty(CLASSES, WIDTH, dtype=second)
        moments = (weight, mean, scales, square, scales, scales)
        yield label, lambda w=weight, v=mean: updating.sgd_rows_(w, v, scales, *common, True, False)  # type: ignore[misc]
        yield label, lambda tensors=moments: updating.adamw_rows_(*tensors, *common, True)  # type: ignore[misc]
        if label != "int8":
            yield label, lambda w=weight: updating.adagrad_rows_(w, scales, *common, True)  # type: ignore[misc]


def _draw() -> None:
    from lightning_pfc.kernels.gpu.drawing import draw_uniform

    labels, step = _empty(BATCH, dtype=torch.int64), _empty(1, dtype=torch.int64)[0]
    draw_uniform(labels, labels, step, CLASSES, 0, 1, SAMPLED, [0, 0], (1000, 1000), SAMPLED, SAMPLED + BATCH)
