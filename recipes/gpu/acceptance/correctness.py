"""Tests 1 to 5: the numbers are right, whatever the precision, the size and the number of classes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from acceptance.bench import Bench
from lightning_pfc import PartialFC, losses
from lightning_pfc.distributed import ClassShard
from lightning_pfc.heads.sampling import sample_uniform

PRECISIONS = ("float32", "tf32", "bfloat16")
MODES: dict[str, dict[str, Any]] = {
    "chunked": {"memory_budget": 0},
    "kept": {"memory_budget": 1 << 34},
    "in_backward": {"memory_budget": 1 << 34, "update_in_backward": True},
}


def against_float64(bench: Bench) -> None:
    """Every loss, rate, precision and way of keeping scores beside the same head in float64."""
    worst: dict[str, float] = {}
    cases = list(_cases(bench))
    for number, (loss, rate, precision, mode) in enumerate(cases):
        if bench.left <= 0:  # what was seen until now is told, and that it was not all
            break
        for name, value in _one_case(bench, loss, rate, precision, MODES[mode], number).items():
            key = f"{name}_{precision}"
            if not value <= worst.get(key, 0.0):
                worst[key] = value
        bench.tell(**worst, share_of_cases=(number + 1) / len(cases))


def _cases(bench: Bench) -> Iterator[tuple[str, float, str, str]]:
    names = [name for name in losses.loss_names() if name != "MarginWarmup"]
    rates, ways = (1.0, 0.1, 0.0), list(itertools.product(PRECISIONS, MODES))
    if not bench.small and not bench.fake:
        yield from ((name, rate, *way) for rate in rates for way in ways for name in names)
        return
    repeats = 1 if bench.fake else 3  # every loss, and every rate and way with some loss
    for number, name in enumerate(names * repeats):
        yield name, rates[number % 3], *ways[number % len(ways)]


def _one_case(
    bench: Bench, loss: str, rate: float, precision: str, mode: dict[str, Any], seed: int
) -> dict[str, float]:
    """Relative errors of loss, of the embeddings' gradient, and of the centers after a step."""
    options = dict(mode)
    in_backward = options.pop("update_in_backward", False)
    classes, rows = bench.size(200_003, 2003), bench.size(509, 61)
    common = {"num_classes": classes, "loss": loss, "sample_rate": rate, "seed": seed}
    ours = bench.head(**common, precision=precision, **options)
    twin = bench.head(**common, dtype="float64", precision="float32")
    with torch.no_grad():
        twin.weight.copy_(ours.weight)
    before = twin.weight.detach().clone()
    x, labels = bench.batch(ours, rows, seed)
    wide = x.detach().double().requires_grad_()
    if in_backward:
        found = bench.step(ours, bench.sgd(ours, update_in_backward=True), x, labels)
        right = bench.step(twin, bench.sgd(twin), wide, labels)
        pairs = (ours.weight.detach().double() - before, twin.weight.detach() - before)
    else:
        found, right = bench.step(ours, None, x, labels), bench.step(twin, None, wide, labels)
        pairs = (ours.weight.grad, twin.weight.grad)
    return {
        "loss": bench.distance(found, right),
        "dx": bench.distance(x.grad, wide.grad),
        "dw": bench.distance(*pairs),
    }


def nearly_certain_target(bench: Bench) -> None:
    """A target whose probability is 1 - 1e-4 and 1 - 1e-6, in bfloat16: p - 1 must not be lost in rounding."""
    for name, rest in (("dx_1e-4", 1e-4), ("dx_1e-6", 1e-6)):
        common = {"num_classes": 1000, "embedding_dim": 512, "loss": {"name": "normface", "scale": 64.0}}
        ours = bench.head(**common, precision="bfloat16")
        twin = bench.head(**common, dtype="float64", precision="float32")
        x, labels = bench.batch(ours, bench.size(256, 32))
        labels = torch.arange(labels.shape[0], device=labels.device)
        _plant(ours.weight, x.detach(), 1.0 - rest)
        with torch.no_grad():
            twin.weight.copy_(ours.weight)
        wide = x.detach().double().requires_grad_()
        bench.step(ours, None, x, labels)
        bench.step(twin, None, wide, labels)
        bench.tell(**{name: bench.distance(x.grad, wide.grad)})


@torch.no_grad()
def _plant(weight: Tensor, x: Tensor, probability: float, scale: float = 64.0) -> None:
    """Turn the center of row i's class, i, so that its probability is about what is asked for."""
    unit = nn.functional.normalize(x.double())
    others = nn.functional.normalize(weight[x.shape[0] :].double())
    logsumexp = (scale * unit @ others.t()).logsumexp(1)
    cosine = (logsumexp + math.log(probability / (1.0 - probability))) / scale
    aside = nn.functional.normalize(weight[: x.shape[0]].double())
    aside = nn.functional.normalize(aside - (aside * unit).sum(1, keepdim=True) * unit)
    planted = cosine[:, None] * unit + (1 - cosine.square()).clamp(min=0).sqrt()[:, None] * aside
    weight[: x.shape[0]] = planted.to(weight.dtype)


def error_by_classes(bench: Bench) -> None:
    """The loss in bfloat16 beside float32: the difference must not grow with the number of classes."""
    bench.needs_memory(60 if not bench.small else 0)
    found = []
    for classes in (1000, 10_000, 100_000) if bench.small or bench.fake else (10_000, 1_000_000, 10_000_000):
        values = []
        head = bench.head(num_classes=classes)
        x, labels = bench.batch(head, bench.size(256, 32))
        for precision in ("float32", "bfloat16"):
            other = _in_precision(bench, head, precision)
            values.append(bench.number(other(x, labels)))
        found.append(abs(values[1] - values[0]) / abs(values[0]))
    bench.tell(error=max(found), drift=found[-1] - found[0])


def _in_precision(bench: Bench, head: PartialFC, precision: str) -> PartialFC:
    made = bench.head(num_classes=head.num_classes, precision=precision)
    with torch.no_grad():
        made.weight.copy_(head.weight)
    return made


def same_bits(bench: Bench) -> None:
    """Two runs give the same bits; the draw is that of the CPU for the same seed and step."""
    runs = []
    for _ in range(2):
        head = bench.head(num_classes=bench.size(100_003, 2003), sample_rate=0.1, seed=7)
        optimizer = bench.sgd(head)
        for step in range(3):
            x, labels = bench.batch(head, bench.size(512, 32), step)
            bench.step(head, optimizer, x, labels)
        runs.append((head.weight.detach(), x.grad))
    (ours, our_grad), (twin, twin_grad) = runs
    assert our_grad is not None
    assert twin_grad is not None
    bench.tell(same=min(bench.same(ours, twin), bench.same(our_grad, twin_grad)))
    bench.tell(draw=min(_same_draw(bench, ClassShard(100_003, rank, 2), seed=rank) for rank in range(2)))


def _same_draw(bench: Bench, shard: ClassShard, seed: int) -> float:
    labels = torch.randint(shard.num_classes, (500,), generator=torch.Generator().manual_seed(seed))
    step = torch.tensor(5 + seed)
    found = [
        sample_uniform(labels.to(device), labels.to(device), shard, 9000, 3, step.to(device), static_shapes=True)
        for device in (torch.device("cpu"), bench.device)
    ]
    pairs = [(found[1].index, found[0].index), (found[1].columns, found[0].columns)]
    pairs.append((found[1].valid, found[0].valid))
    return min(bench.same(ours, twin) for ours, twin in pairs if ours is not None and twin is not None)


def large_indices(bench: Bench) -> None:
    """More than 2^31 numbers in the centers, and more than 2^31 scores: labels in the last rows, beside float64."""
    bench.needs_memory(30 if not bench.small else 0)
    classes, rows = bench.size(5_000_000, 20_000), bench.size(1024, 32)
    head = bench.head(num_classes=classes)
    x, labels = bench.batch(head, rows)
    labels = classes - 1 - torch.arange(rows, device=labels.device)
    bench.step(head, None, x, labels)
    loss, grad = _streamed_twin(head, x.detach(), labels, bench.size(100_000, 5000))
    with torch.no_grad():
        found = head(x, labels)
    bench.tell(loss=bench.distance(found, loss), dx=bench.distance(x.grad, grad))


def _streamed_twin(head: PartialFC, x: Tensor, labels: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """CosFace written from its formula, in float64 and by blocks of classes: loss and gradient of the embeddings."""
    scale, margin = float(head.loss.scale), float(head.loss.margin)  # type: ignore[attr-defined]
    wide = x.double().requires_grad_()
    unit = nn.functional.normalize(wide)
    weight = head.weight.detach()
    own = nn.functional.normalize(weight[labels].double())
    target = scale * ((unit * own).sum(1) - margin)
    sums, pull = torch.zeros_like(target), torch.zeros_like(wide)
    for low in range(0, weight.shape[0], width):  # exp(z - scale) needs no maximum, since z <= scale
        rows = nn.functional.normalize(weight[low : low + width].double())
        terms = torch.exp(scale * (unit.detach() @ rows.t()) - scale)
        here = labels - low
        place = here.clamp(0, rows.shape[0] - 1)[:, None]
        inside = ((here >= 0) & (here < rows.shape[0]))[:, None]
        terms.scatter_(1, place, torch.where(inside, 0.0, terms.gather(1, place)))
        sums = sums + terms.sum(1)
        pull = pull + terms @ rows
    total = sums + torch.exp(target.detach() - scale)
    loss = (total.log() + scale - target.detach()).mean()
    share = 1.0 - torch.exp(target.detach() - scale) / total
    slope = scale * (pull / total[:, None] - share[:, None] * own) / x.shape[0]
    unit.backward(slope)
    assert wide.grad is not None
    return loss, wide.grad
