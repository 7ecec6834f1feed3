"""A forward that autograd computes again gives the gradients of the first one, and counts and remembers nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from lightning_pfc import PartialFC
from lightning_pfc import losses as L
from lightning_pfc.heads.sampling import Mixed, Recent

DIM, CLASSES, BATCH = 6, 60, 7
Forward = Callable[[PartialFC, nn.Module, Tensor, Tensor], Tensor]


def plain(head: PartialFC, net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    return head(net(x), labels)


def of_the_head(reentrant: bool) -> Forward:
    return lambda head, net, x, labels: checkpoint(head, net(x), labels, use_reentrant=reentrant)


def of_everything(reentrant: bool) -> Forward:
    """Operations before and after the head belong to the region."""

    def forward(head: PartialFC, net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        return checkpoint(lambda x: head(net(x), labels).square().sqrt(), x.requires_grad_(), use_reentrant=reentrant)

    return forward


def compiled(forward: Forward) -> Forward:
    return lambda *args: torch.compile(forward, backend="eager")(*args)


WAYS = {
    "head": of_the_head(False),
    "head, reentrant": of_the_head(True),
    "everything": of_everything(False),
    "everything, reentrant": of_everything(True),
}

CASES: dict[str, dict[str, Any]] = {
    "uniform": {"loss": L.CosFace(scale=8.0), "sample_rate": 0.2},
    "no negatives": {"loss": L.CosFace(scale=8.0), "sample_rate": 0.0},
    "mixed": {"loss": L.CosFace(scale=8.0), "sample_rate": 0.5, "sampler": Mixed(refresh=2)},
    "recent": {"loss": L.CosFace(scale=8.0), "sample_rate": 0.3, "sampler": Recent()},
    "random margins": {"loss": L.ElasticFace(scale=8.0, std=0.2), "sample_rate": 0.3},
    "averages": {"loss": L.AdaFace(scale=8.0, momentum=0.5, h=1.0), "sample_rate": 0.3},
    "averages of cosines": {"loss": L.CurricularFace(scale=8.0, momentum=0.5), "sample_rate": 0.3},
    "scale": {"loss": L.AdaCos()},
    "parameters": {"loss": L.UniFace(scale=8.0), "sample_rate": 0.3},
    "warm-up": {"loss": L.MarginWarmup(loss=L.ArcFace(scale=8.0), steps=3), "sample_rate": 0.3},
    "memory": {"loss": L.VPL(scale=8.0, share=0.4, start=0, lifetime=2), "sample_rate": 0.6},
    "memory of additions": {"loss": L.CosFace(scale=8.0), "sample_rate": 0.3, "additions": ["center", "triplet"]},
}


def batch(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(BATCH, DIM, generator=generator), torch.randint(0, 12, (BATCH,), generator=generator)


def one_by_one(forward: Forward, head: PartialFC, net: nn.Module) -> Iterable[Tensor]:
    for number in range(4):
        loss = forward(head, net, *batch(number))
        loss.backward()
        yield loss


def thrown_away(forward: Forward, head: PartialFC, net: nn.Module) -> Iterable[Tensor]:
    """Forwards without a backward count, and what comes after them is that of a later step."""
    for number in range(4):
        forward(head, net, *batch(number))
        loss = forward(head, net, *batch(number))
        loss.backward()
        yield loss


def first_of_two(forward: Forward, head: PartialFC, net: nn.Module) -> Iterable[Tensor]:
    for number in range(3):
        losses = [forward(head, net, *batch(2 * number + i)) for i in range(2)]
        losses[0].backward()
        yield from losses


def together(forward: Forward, head: PartialFC, net: nn.Module) -> Iterable[Tensor]:
    """Twice the same batch, and another, before any backward."""
    losses = [forward(head, net, *batch(number)) for number in (0, 0, 1)]
    torch.stack(losses).sum().backward()
    return losses


def twice(forward: Forward, head: PartialFC, net: nn.Module) -> Iterable[Tensor]:
    losses = [forward(head, net, *batch(number)) for number in (0, 0)]
    for _ in range(2):
        torch.stack(losses).sum().backward(retain_graph=True)
    return losses


def in_order(forward: Forward, head: PartialFC, net: nn.Module) -> Iterable[Tensor]:
    """Backward passes in the order of the forwards, which all have the same batch."""
    losses = [forward(head, net, *batch(0)) for _ in range(3)]
    for loss in losses:
        loss.backward()
    return losses


def run(case: str, forward: Forward, order: Callable[..., Iterable[Tensor]]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    net = nn.Linear(DIM, DIM)
    head = PartialFC(embedding_dim=DIM, num_classes=CLASSES, init_std=1.0, seed=3, **CASES[case]).to("cpu")
    losses = [loss.detach() for loss in order(forward, head, net)]
    tensors = {name: value.clone() for name, value in head.state_dict().items()}
    grads = {name: p.grad for name, p in [*head.named_parameters(), *net.named_parameters("net")]}
    return tensors | {f"{name}.grad": grad for name, grad in grads.items()} | {"loss": torch.stack(losses)}


def compare(case: str, forward: Forward, order: Callable[..., Iterable[Tensor]], atol: float = 1e-6) -> None:
    want, got = run(case, plain, order), run(case, forward, order)
    assert want.keys() == got.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_gradients_and_state_are_those_of_one_forward(case: str, way: str) -> None:
    compare(case, WAYS[way], one_by_one)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("order", [thrown_away, first_of_two, together, twice])
@pytest.mark.parametrize("case", ["uniform", "averages", "memory", "memory of additions"])
def test_whatever_lies_between(case: str, order: Callable[..., Iterable[Tensor]], way: str) -> None:
    if "reentrant" in way and order is twice:
        order = together  # it cannot go back twice
    compare(case, WAYS[way], order)


@pytest.mark.parametrize("case", ["uniform", "recent"])
def test_the_same_batch_in_the_order_of_the_forwards(case: str) -> None:
    for way in ("head", "everything"):
        compare(case, WAYS[way], in_order)


@pytest.mark.parametrize("way", ["head", "everything", "head, reentrant"])
def test_compiled(way: str) -> None:
    compare("uniform", compiled(WAYS[way]), one_by_one)
    torch._dynamo.reset()


def nested(inner: bool, outer: bool) -> Forward:
    """A region within a region: what is computed again there is computed a third time."""

    def forward(head: PartialFC, net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        region = lambda x: checkpoint(head, net(x), labels, use_reentrant=inner) * 1.0  # noqa: E731
        return checkpoint(region, x.requires_grad_(), use_reentrant=outer)

    return forward


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("case", ["uniform", "averages", "memory"])
def test_a_region_within_a_region(case: str, inner: bool, outer: bool) -> None:
    for order in (one_by_one, thrown_away, together, *([] if outer else [in_order])):
        compare(case, nested(inner, outer), order)


def called_twice(scale: float, region: bool | None) -> Forward:
    """One region with two forwards, of two batches or of the same one."""

    def forward(head: PartialFC, net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        both = lambda x: head(net(x), labels) + head(net(x) * scale, labels)  # noqa: E731
        return both(x) if region is None else checkpoint(both, x.requires_grad_(), use_reentrant=region)

    return forward


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("case", ["uniform", "averages", "memory"])
def test_two_forwards_in_one_region(case: str, scale: float) -> None:
    for order in (one_by_one, thrown_away, together, in_order):
        want, got = (run(case, called_twice(scale, region), order) for region in (None, False))
        for name, value in want.items():
            torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def of_one_batch(region: bool | None) -> Forward:
    """Two forwards whose embeddings and labels are the same, and which differ in what the labels count."""

    def forward(head: PartialFC, net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        mixed = lambda x, share: head(net(x), labels, labels.flip(0), share)  # noqa: E731
        both = lambda x: mixed(x, 0.3) + mixed(x, 0.8)  # noqa: E731
        return both(x) if region is None else checkpoint(both, x.requires_grad_(), use_reentrant=region)

    return forward


@pytest.mark.parametrize("region", [False, True])
@pytest.mark.parametrize("case", ["uniform", "memory of additions"])
def test_a_region_is_run_in_its_order(case: str, region: bool) -> None:
    for order in (one_by_one, together):
        want, got = (run(case, of_one_batch(way), order) for way in (None, region))
        for name, value in want.items():
            torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def in_mode(training: bool, region: bool | None) -> Forward:
    """A forward in one mode, and a backward pass that finds the head in the other."""

    def forward(head: PartialFC, net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        head.train(training)
        try:
            if region is None:
                return head(net(x), labels)
            return checkpoint(lambda x: head(net(x), labels), x.requires_grad_(), use_reentrant=region)
        finally:
            head.train(not training)

    return forward


@pytest.mark.parametrize("region", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_mode_is_that_of_the_first_forward(training: bool, region: bool) -> None:
    for case in ("uniform", "averages"):
        want, got = (run(case, in_mode(training, way), together) for way in (None, region))
        for name, value in want.items():
            torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def selective(*operations: Any) -> Forward:
    """A policy that keeps the results of some operations, or says of all that they are computed again."""

    def forward(head: PartialFC, net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        policy: Any = [*operations] or (lambda *args, **kwargs: CheckpointPolicy.MUST_RECOMPUTE)
        contexts = partial(create_selective_checkpoint_contexts, policy)

        def region(x: Tensor) -> Tensor:
            head.prepare(labels)
            return head(net(x), labels)

        return checkpoint(region, x.requires_grad_(), use_reentrant=False, context_fn=contexts)

    return forward


POLICIES = {
    "nothing": (),
    "products": (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default),
    "sums": (torch.ops.aten.sum.dim_IntList,),
    "rows": (torch.ops.aten.index_select.default, torch.ops.aten.sort.default),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("case", ["uniform", "mixed", "averages of cosines", "scale", "memory", "memory of additions"])
def test_a_policy_keeps_nothing_of_the_head(case: str, policy: str) -> None:
    """It would give the second run what the first one's draw computed."""
    for order in (one_by_one, together):
        compare(case, selective(*POLICIES[policy]), order)


def many(number: int) -> Callable[..., Iterable[Tensor]]:
    """Forwards of as many batches before one backward pass, and once more: nothing of the first ones may be left."""

    def order(forward: Forward, head: PartialFC, net: nn.Module) -> Iterable[Tensor]:
        for start in (0, number):
            losses = [forward(head, net, *batch(start + i)) for i in range(number)]
            torch.stack(losses).sum().backward()
            yield from losses

    return order


MANY = {
    "reentrant": (WAYS["head, reentrant"], 40),
    "everything, reentrant": (WAYS["everything, reentrant"], 40),
    "reentrant in reentrant": (nested(True, True), 20),
    "reentrant in reentrant, more": (nested(True, True), 40),
    "reentrant in another": (nested(True, False), 20),
    "another in reentrant": (nested(False, True), 20),
    "compiled": (compiled(WAYS["head, reentrant"]), 40),
}


@pytest.mark.parametrize(("case", "way"), [*(("uniform", way) for way in MANY), ("memory", "reentrant in reentrant")])
def test_many_regions_before_a_backward_pass(case: str, way: str) -> None:
    forward, number = MANY[way]
    compare(case, forward, many(number), atol=1e-5)  # of sums in another order


def test_step_counts_forwards() -> None:
    for way in WAYS.values():
        assert run("uniform", way, one_by_one)["step"] == 4
        assert run("uniform", way, thrown_away)["step"] == 8


def test_a_new_forward_inside_a_backward_pass_draws_and_counts() -> None:
    head = PartialFC(embedding_dim=DIM, num_classes=CLASSES, loss="cosface", sample_rate=0.1).to("cpu")
    x, labels = batch(0)
    loss = checkpoint(head, x.requires_grad_(), labels, use_reentrant=False)
    other = batch(1)
    loss.register_hook(lambda grad: head(*other) * 0 + grad)
    loss.backward()
    assert head.step == 2


def test_nothing_is_kept_of_what_is_gone() -> None:
    head = PartialFC(embedding_dim=DIM, num_classes=CLASSES, loss="cosface", sample_rate=0.1).to("cpu")
    for number in range(100):
        x, labels = batch(number)
        checkpoint(head, x.requires_grad_(), labels, use_reentrant=False)
        checkpoint(head, x, labels, use_reentrant=True)
        head(x, labels).backward()
    assert len([*head._passes._newest_first()]) == 0
    with torch.no_grad():
        for number in range(100):
            head(*batch(number))
    assert len([*head._passes._newest_first()]) == 32
    losses = [nested(True, True)(head, nn.Linear(DIM, DIM), *batch(number)) for number in range(20)]
    assert len([*head._passes._newest_first()]) == 52
    torch.stack(losses).sum().backward()
    assert len(head._passes._again) == 20
    losses.clear()
    head(*batch(0))
    assert len([*head._passes._newest_first()]) == 32


def test_memory_as_it_was_when_several_forwards_come_before_the_backward_passes() -> None:
    """Also without a recomputation: what a later forward remembers is not what an earlier one was computed with."""

    def together_of_classes_in_common(forward: Forward, head: PartialFC, net: nn.Module) -> Iterable[Tensor]:
        losses = []
        for number in range(3):
            losses.append(forward(head, net, *batch(number)))
            if separately:
                losses[-1].backward()
        if not separately:
            torch.stack(losses).sum().backward()
        return losses

    separately = True
    want = run("memory", plain, together_of_classes_in_common)
    separately = False
    for forward in (plain, *WAYS.values()):
        got = run("memory", forward, together_of_classes_in_common)
        torch.testing.assert_close(got["weight.grad"], want["weight.grad"], rtol=1e-5, atol=1e-6)
