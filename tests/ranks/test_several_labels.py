"""Labels (b, P): every loss that takes them, in one pass, against one float64 row and positive at a time; refusals."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lightning_pfc import PartialFC, losses
from lightning_pfc.distributed import Comm
from lightning_pfc.losses.auxiliary import Triplet
from tests.loss_twins import FORMULAS, Batch, cosines
from tests.ranks import RankPool
from tests.reference import dense_loss

DIM, CLASSES, SPLIT = 16, 37, (4, 1, 3)
LOSSES = [
    losses.ArcFace(), losses.CosFace(label_smoothing=0.1), losses.SphereFace(scale=16.0), losses.CombinedMargin(m3=0.1),
    losses.NormFace(interclass_filter=0.3), losses.Softmax(bias=True, label_smoothing=0.1), losses.AdaFace(),
    losses.MagFace(), losses.ElasticFace(), losses.SphereFace2(), losses.UniFace(), losses.Circle(scale=16.0),
    losses.AdaCos(dynamic=False), losses.SubCenterArcFace(centers=2), losses.DSoftmax(),
    losses.MarginWarmup(loss=losses.SphereFace(scale=16.0), steps=4),
]  # fmt: skip
ONE_LABEL = [losses.CurricularFace(), losses.MVSoftmax(), losses.ElasticFace(plus=True), losses.AdaCos(), losses.VPL()]
RATES = (1.0, 0.1, 0.0)
PRECISIONS = (("float32", 2e-5), ("bfloat16", 6e-2))


def cases_on(world_size: int) -> list[tuple[losses.Loss, float, str]]:
    """Both precisions; on two ranks float32 alone."""
    words = ["float32"] if world_size == 2 else [word for word, _ in PRECISIONS]
    return [(loss, rate, word) for loss in LOSSES for rate in RATES for word in words]


def batch() -> tuple[Tensor, Tensor]:
    """Rows with three, two and one positive, gaps at any place, one class named twice, one in several rows."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, CLASSES, (sum(SPLIT), 3), generator=generator)
    labels[0] = torch.tensor([5, -1, 5])
    labels[1] = torch.tensor([-1, -1, 36])
    labels[3] = torch.tensor([5, 9, -1])
    return 2 * torch.randn(sum(SPLIT), DIM, dtype=torch.float64, generator=generator), labels


def make(loss: losses.Loss, rate: float, comm: Comm, **options: Any) -> PartialFC:
    settings: dict[str, Any] = {
        "chunk_size": 9,
        "init_std": 1.0,
        "memory_budget": 300,
        "dtype": torch.float64,
        **options,
    }
    return PartialFC(embedding_dim=DIM, num_classes=CLASSES, loss=loss, sample_rate=rate, comm=comm, **settings)


def twin(loss: losses.Loss, rate: float) -> dict[str, Tensor]:
    """Loss and gradients, row by row and positive by positive, each over its own classes."""
    x, labels = batch()
    head = make(loss, rate, Comm.single())
    head.to("cpu")
    sampled = head._sample(labels[labels >= 0], labels[labels >= 0]).index if rate < 1 else None
    every = range(CLASSES) if sampled is None else sampled.tolist()
    x.requires_grad_()
    weight = head.weight.detach().clone().requires_grad_()
    state = {name: value.double().clone() for name, value in loss.initial_state(CLASSES).items()}
    learned = {name: value.double() for name, value in loss.initial_parameters(CLASSES).items()}
    norms, rows = x.norm(dim=1), []
    if isinstance(loss, losses.AdaFace):  # the averages are those of the samples
        FORMULAS["AdaFace"](loss, Batch(cosines(x, weight, 1), labels.amax(1), norms, 0, 0, state, learned))
    for i, row in enumerate(labels.tolist()):
        positives = [label for label in row if label >= 0]
        parts = []
        for y in positives:
            classes = torch.tensor([j for j in every if j == y or j not in positives])
            target = (classes == y).nonzero()[0]
            if type(loss).__name__ not in FORMULAS:
                parts.append(dense_loss(x[i : i + 1], weight, torch.tensor([y]), loss, head.bias, classes))
                continue
            cosine = cosines(x[i : i + 1], weight[classes], loss.num_centers)
            parts.append(one_entry(loss, cosine, target, norms[i : i + 1], i, state, learned))
        rows.append(torch.stack(parts).mean())
    value = torch.stack(rows).mean()
    value.backward()
    assert x.grad is not None
    assert weight.grad is not None
    return {"loss": value.detach(), "x": x.grad, "weight": weight.grad}


def one_entry(
    loss: losses.Loss, cosine: Tensor, target: Tensor, norms: Tensor, place: int,
    state: dict[str, Tensor], learned: dict[str, Tensor],
) -> Tensor:  # fmt: skip
    """The loss of one row with one positive, by the formula of the paper; what depends on the batch is known."""
    known = Batch(cosine, target, norms, 0, 0, copy.deepcopy(state), learned)
    if isinstance(loss, losses.ElasticFace | losses.AdaFace):
        info = losses.BatchInfo(target, norms, None, 0, torch.tensor(0), torch.tensor([place]))
        logit = loss.target_logits(known.own, info, state)
        logits = (loss.scale * cosine).masked_scatter(known.onehot, logit)
        return torch.nn.functional.cross_entropy(logits, target)
    return FORMULAS[type(loss).__name__](loss, known)


def every_case(rank: int, world_size: int) -> list[dict[str, Tensor]]:
    comm = Comm.from_group() if dist.is_initialized() else Comm.single()
    sizes = {1: [sum(SPLIT)], 2: [SPLIT[0], SPLIT[1] + SPLIT[2]], 3: list(SPLIT)}[world_size]
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    x, labels = batch()
    found = []
    for loss, rate, word in cases_on(world_size):
        head = make(loss, rate, comm, dtype=torch.float32, precision=word).to("cpu")
        leaf = x[own].float().requires_grad_()
        output = head.loss_output(leaf, labels[own])
        output.loss.backward()
        assert leaf.grad is not None
        assert head.weight.grad is not None
        assert output.target_cosine.shape == leaf.shape[:1]
        found.append({"loss": output.loss.detach(), "x": leaf.grad / world_size, "weight": head.weight.grad.to_dense()})
    return found


@pytest.fixture(scope="module")
def exact() -> dict[str, dict[str, Tensor]]:
    return {f"{loss} {rate}": twin(loss, rate) for loss in LOSSES for rate in RATES}


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_loss_and_gradients(ranks: RankPool, world_size: int, exact: dict[str, dict[str, Tensor]]) -> None:
    found, allowed = ranks.run(world_size, every_case, group=world_size > 1), dict(PRECISIONS)
    off = []
    for (loss, rate, word), *parts in zip(cases_on(world_size), *found, strict=True):
        want = exact[f"{loss} {rate}"]
        got = {
            "loss": parts[0]["loss"],
            "x": torch.cat([p["x"] for p in parts]),
            "weight": torch.cat([p["weight"] for p in parts]),
        }
        for name, value in got.items():
            error = float((value.double() - want[name]).norm() / want[name].norm().clamp(min=1e-6))
            if not error <= allowed[word]:
                off.append(f"{loss} at {rate} in {word}: {name} is off by {error:.1e}")
    assert not off, "\n".join(off)


def test_one_column_is_one_label_and_padding_changes_nothing() -> None:
    x, labels = batch()
    best = labels.amax(1)
    padded = torch.stack([torch.full_like(best, -1), best, torch.full_like(best, -1)], 1)
    for loss in LOSSES:
        values = [make(loss, 0.4, Comm.single())(x, given).detach() for given in (best, best[:, None], padded)]
        torch.testing.assert_close(values[1], values[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(values[2], values[0], rtol=1e-12, atol=1e-12)


def refused(rank: int, world_size: int) -> list[str]:
    x, labels = batch()
    x, labels, comm, found = x[:4], labels[:4], Comm.from_group(), []
    plain = make(losses.ArcFace(), 1.0, comm)
    empty, beyond, below = labels.clone(), labels.clone(), labels.clone()
    empty[2], beyond[1, 1], below[1, 1] = -1, CLASSES, -2
    other = rank == 1
    calls: list[Any] = [(make(loss, 1.0, comm), (x, labels)) for loss in ONE_LABEL]
    calls += [(make(losses.MarginWarmup(loss=losses.CurricularFace()), 1.0, comm), (x, labels))]
    calls += [(make(losses.ArcFace(), 1.0, comm, auxiliary_losses=[Triplet()]), (x, labels))]
    calls += [(plain, (x, labels, labels, 0.5)), (plain, (x, labels[:, :0]))]
    calls += [
        (plain, (x, bad if other else labels))
        for bad in (empty, beyond, below, labels[:, 1:], labels.amax(1), labels[:3])
    ]
    calls += [(plain, (x, labels[None] if other else labels)), (plain.target_ranks, (x, labels))]
    for call, arguments in calls:
        with pytest.raises(ValueError, match=r".") as error:
            call(*arguments)
        found.append(str(error.value))
    return found


WORDS = (
    "CurricularFace takes one label a row", "MVSoftmax takes one label a row", "plus=True orders rows",
    "AdaCos takes one label a row", "VPL takes one label a row", "MarginWarmup takes one label a row",
    "auxiliary_losses compare", "mixed (other=) have one label each", "at least one class id",
    "holds 1 row(s) without any class id", "outside [0, num_classes=37), such as 37", "such as -2",
    "P of labels (b, P), 0 for (b,), differs between ranks: [3, 2]", "differs between ranks: [3, 0]",
    "it must be (4,)", "it must be (4,)",
    "PartialFC.target_ranks takes one label a row",
)  # fmt: skip


def test_what_is_refused_is_refused_in_one_line_on_every_rank(ranks: RankPool) -> None:
    for messages in ranks.run(2, refused):
        for message, words in zip(messages, WORDS, strict=True):
            assert words in message
            assert "\n" not in message


def test_centers_updated_on_the_way_and_kept_on_the_host_take_several() -> None:
    from lightning_pfc.optim import SparseSGD

    x, labels = batch()
    results = []
    for in_backward, options in ((False, {}), (True, {}), (False, {"rows_on": "host"})):
        head = make(replace(LOSSES[0]), 0.4, Comm.single(), **options).to("cpu")
        optimizer = SparseSGD(head.parameters(), lr=0.1, momentum=0.9, update_in_backward=in_backward)
        head(x.clone().requires_grad_(), labels).backward()
        optimizer.step()
        results.append(head.weight.detach().clone())
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


def with_copies(rank: int, world_size: int) -> list[Tensor]:
    comm, own = Comm.from_group(head_group_size=2), slice(2 * rank, 2 * rank + 2)
    x, labels = batch()
    found = []
    for rate in RATES:
        leaf = x[own].clone().requires_grad_()
        value = make(losses.AdaFace(), rate, comm)(leaf, labels[own])
        value.backward()
        assert leaf.grad is not None
        found += [value.detach(), leaf.grad / world_size]
    return found


def test_copies_of_a_head_agree(ranks: RankPool, exact: dict[str, dict[str, Tensor]]) -> None:
    found = ranks.run(4, with_copies)
    for place, rate in enumerate(RATES):
        want = exact[f"{losses.AdaFace()} {rate}"]
        for rank in found:
            torch.testing.assert_close(rank[2 * place], want["loss"], rtol=1e-6, atol=1e-9)
        grads = torch.cat([rank[2 * place + 1] for rank in found])
        torch.testing.assert_close(grads, want["x"], rtol=1e-5, atol=1e-8)
