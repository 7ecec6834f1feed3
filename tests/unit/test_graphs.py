"""A whole step as a CUDA graph holds it: captured once, replayed with other labels, bit for bit the eager steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_pfc import PartialFC, losses
from lightning_pfc.heads import batch_checks
from lightning_pfc.optim import RowWiseAdagrad, SparseAdamW, SparseSGD, fused_rows, row_step
from tests.unit.pretended_gpu import Elsewhere, HostWaits, PretendedGPU, move_there

BATCH, DIM, CLASSES, REPLAYS = 12, 16, 200, 20
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p, **o: SparseSGD(p, momentum=0.9, weight_decay=1e-3, **o),
    "sgd int8": lambda p, **o: SparseSGD(p, momentum=0.9, state_dtype="int8", **o),
    "adamw": lambda p, **o: SparseAdamW(p, missed_steps="decay", **o),
    "adagrad": lambda p, **o: RowWiseAdagrad(p, **o),
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    with PretendedGPU() as mode:
        for module in (batch_checks, fused_rows, row_step):
            monkeypatch.setattr(module, "capturing", lambda device: mode.graph is not None)
        yield mode


def make(loss: Any, rate: float, **options: Any) -> PartialFC:
    return move_there(
        PartialFC(embedding_dim=DIM, num_classes=CLASSES, loss=loss, sample_rate=rate, seed=1, init_std=1.0, **options)
    )


def batch(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(BATCH, DIM, generator=generator)
    return x, torch.randint(CLASSES, (BATCH,), generator=generator)


def there(tensor: Tensor) -> Elsewhere:
    return Elsewhere(tensor.clone())


def step(head: PartialFC, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    x.grad = None
    loss = head(x, labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    assert x.grad is not None
    return loss.detach(), x.grad


def numbers(head: PartialFC, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    found = [*head.parameters(), *head.buffers()]
    found += [value for state in optimizer.state.values() for value in state.values()]
    return [tensor.inner if isinstance(tensor, Elsewhere) else tensor for tensor in found]


def replayed_and_in_turn(gpu: PretendedGPU, make_head: Callable[[], PartialFC], make_optimizer: Any) -> None:
    heads = [make_head() for _ in range(2)]
    rates = [there(torch.tensor(0.1)) for _ in heads]
    optimizers = [
        make_optimizer(head.parameters(), lr=lr, update_in_backward=True, capturable=True)
        for head, lr in zip(heads, rates, strict=True)
    ]
    x, labels = (there(tensor) for tensor in batch(0))
    x.requires_grad_()
    for head, optimizer in zip(heads, optimizers, strict=True):
        for _ in range(2):  # a graph is captured when all that lives on is there
            step(head, optimizer, x, labels)
    before = numbers(heads[0], optimizers[0])[0].clone()
    with gpu.capture() as graph:
        loss, grad = step(heads[0], optimizers[0], x, labels)
    step(heads[1], optimizers[1], x, labels)
    for number in range(1, REPLAYS):
        other_x, other_labels = batch(number % 5)
        x.inner.copy_(other_x)
        labels.inner.copy_(other_labels)
        for lr in rates:
            lr.inner.mul_(0.9)
        graph.replay()
        own_x = there(other_x).requires_grad_()
        own_loss, own_grad = step(heads[1], optimizers[1], own_x, there(other_labels))
        assert torch.equal(loss.inner, own_loss.inner), number  # type: ignore[arg-type]
        assert torch.equal(grad.inner, own_grad.inner), number  # type: ignore[arg-type]
    for one, other in zip(*map(numbers, heads, optimizers), strict=True):
        assert torch.equal(one, other)
    assert int(heads[0].step.inner) == REPLAYS + 2  # type: ignore[call-overload]
    assert not torch.equal(before, numbers(heads[0], optimizers[0])[0])


@pytest.mark.parametrize("rate", [1.0, 0.2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_replays_are_the_steps_in_turn(gpu: PretendedGPU, optimizer: str, rate: float) -> None:
    replayed_and_in_turn(gpu, lambda: make("cosface", rate), OPTIMIZERS[optimizer])


@pytest.mark.parametrize(
    ("loss", "rate", "options"),
    [
        ("arcface", 0.2, {"precision": "bfloat16"}),
        ("arcface", 1.0, {"memory_budget": 0, "chunk_size": 64}),
        ("adacos", 0.2, {}),
        ("curricularface", 0.2, {}),
        ("elasticface", 0.2, {}),
        (losses.MarginWarmup(loss=losses.ArcFace(), steps=30), 0.2, {}),
        ("softmax", 0.2, {"dtype": torch.bfloat16}),
    ],
    ids=str,
)
def test_what_changes_from_step_to_step_is_on_the_device(
    gpu: PretendedGPU, loss: Any, rate: float, options: dict[str, Any]
) -> None:
    """The scale of AdaCos, averages, a margin that grows, random margins: none is a number of the host."""
    replayed_and_in_turn(gpu, lambda: make(loss, rate, **options), OPTIMIZERS["sgd"])


def test_labels_of_several_positives(gpu: PretendedGPU) -> None:
    head, other = make("cosface", 0.2), make("cosface", 0.2)
    x, labels = batch(0)
    several = torch.stack([labels, (labels + 7) % CLASSES], 1)
    several[3:, 1] = -1
    results = []
    optimizers = [SparseSGD(h.parameters(), lr=0.1, update_in_backward=True, capturable=True) for h in (head, other)]
    for h, optimizer in zip((head, other), optimizers, strict=True):
        own, own_labels = there(x).requires_grad_(), there(several)
        step(h, optimizer, own, own_labels)
        if h is head:
            with gpu.capture() as graph:
                step(h, optimizer, own, own_labels)
            graph.replay()
        else:
            for _ in range(2):
                step(h, optimizer, own, own_labels)
        results.append(numbers(h, optimizer))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_a_counter_on_the_host_is_refused_in_a_capture(gpu: PretendedGPU) -> None:
    head = make("cosface", 0.2)
    optimizer = SparseSGD(head.parameters(), lr=0.1, update_in_backward=True)
    x, labels = (there(tensor) for tensor in batch(0))
    step(head, optimizer, x.requires_grad_(), labels)
    with gpu.capture(), pytest.raises(RuntimeError, match=r"SparseSGD\(capturable=False\).*capturable=True"):
        step(head, optimizer, x, labels)


def test_a_bad_label_in_a_replay_is_found_before_a_checkpoint(gpu: PretendedGPU) -> None:
    head = make("cosface", 0.2)
    optimizer = SparseSGD(head.parameters(), lr=0.1, update_in_backward=True, capturable=True)
    x, labels = (there(tensor) for tensor in batch(0))
    step(head, optimizer, x.requires_grad_(), labels)
    with gpu.capture() as graph:
        step(head, optimizer, x, labels)
    graph.replay()
    head.check()
    x.inner[2, 3] = torch.nan
    graph.replay()
    x.inner[2, 3] = 0.0
    graph.replay()  # the one after it does not hide it
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        head.check()
    head.check()  # said once


def test_without_a_graph_nothing_is_read_before_a_checkpoint() -> None:
    """A tensor without values cannot be read, nor waited for."""
    check = batch_checks.DeferredCheck()
    check.watch(torch.empty(3, DIM, device="meta"), torch.empty(3, dtype=torch.int64, device="meta"), CLASSES, True)
    assert check.replayed() is None


@pytest.mark.parametrize(
    "wait", [lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: x.cpu(), lambda x: x.add_(torch.ones(3))]
)
def test_a_wait_is_noticed(gpu: PretendedGPU, wait: Any) -> None:
    x = there(torch.ones(3))
    wait(x)
    with gpu.capture(), pytest.raises(HostWaits):
        wait(x)


def test_a_number_of_the_host_stays_what_it_was(gpu: PretendedGPU) -> None:
    count, x = torch.tensor(1.0), there(torch.zeros(3))
    with gpu.capture() as graph:
        x += count
        count += 1
    graph.replay()
    assert x.inner.tolist() == [2.0] * 3
