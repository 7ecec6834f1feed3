"""The further losses on real processes against their dense float64 twins: value, gradients, state, learned numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lightning_pfc import PartialFC
from lightning_pfc import losses as L
from lightning_pfc.distributed import Comm
from lightning_pfc.losses.auxiliary import AuxiliaryLoss, Center, SupCon, Triplet, auxiliary_loss_from_config
from tests.loss_twins import twin_loss
from tests.ranks import RankPool
from tests.reference import uneven_split

DIM, CLASSES, BATCH, STEPS = 5, 17, 9, 3

CASES: list[tuple[L.Loss, float]] = [
    (L.AdaFace(scale=16.0), 1.0),
    (L.AdaFace(scale=16.0, margin_grad="straight_through", momentum=0.01), 0.5),
    (L.MagFace(scale=16.0, lower_norm=1.0, upper_norm=30.0), 1.0),
    (L.MagFace(scale=16.0, lower_norm=1.0, upper_norm=30.0), 0.4),
    (L.CurricularFace(scale=16.0), 1.0),
    (L.CurricularFace(scale=100.0), 0.5),
    (L.MVSoftmax(scale=16.0), 1.0),
    (L.MVSoftmax(scale=16.0, margin=0.5, margin_type="angular", weighting="fixed"), 0.5),
    (L.ElasticFace(scale=16.0, std=0.1), 1.0),
    (L.ElasticFace(scale=16.0, std=0.1, margin=0.35, margin_type="additive", plus=True), 0.5),
    (L.SphereFace2(scale=10.0), 1.0),
    (L.SphereFace2(scale=10.0, power=2.0), 0.4),
    (L.UniFace(scale=16.0), 1.0),
    (L.UniFace(scale=16.0, balance=0.5), 0.5),
    (L.Circle(scale=32.0), 1.0),
    (L.Circle(scale=32.0), 0.5),
    (L.AdaCos(), 1.0),
    (L.AdaCos(), 0.5),
    (L.AdaCos(dynamic=False), 1.0),
    (L.MarginWarmup(loss=L.SphereFace(scale=16.0), steps=2), 1.0),
    (L.MarginWarmup(loss={"name": "curricularface", "scale": 16.0}, start=1, steps=2), 0.5),
    (L.SubCenterArcFace(scale=16.0), 1.0),
    (L.SubCenterArcFace(scale=16.0, centers=2), 0.4),
    (L.VPL(scale=16.0, share=0.3, start=0, lifetime=1), 1.0),
    (L.VPL(scale=16.0, share=0.4, start=2), 0.5),
    (L.DSoftmax(scale=16.0), 1.0),
    (L.DSoftmax(scale=16.0, end_point=0.5), 0.4),
]


def batch_of(case: int, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * case + step)
    x = 4 * torch.randn(BATCH, DIM, dtype=torch.float64, generator=generator)
    return x, torch.randint(0, CLASSES, (BATCH,), generator=generator)


def make_head(case: int, comm: Comm | None = None) -> PartialFC:
    loss, rate = CASES[case]
    head = PartialFC(
        embedding_dim=DIM, num_classes=CLASSES, loss=loss, sample_rate=rate, seed=case, comm=comm, chunk_size=4,
        memory_budget=0 if case % 2 else 1 << 20, dtype=torch.float64, init_std=1.0,
    )  # fmt: skip
    return head.double() if comm is not None else head.to("cpu").double()


def state_of(head: PartialFC) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in head._loss_state().items()}


def learned_of(head: PartialFC) -> dict[str, Tensor]:
    return {name: p for name, p in head.named_parameters() if name not in ("weight", "bias")}


def train(rank: int, world_size: int, group_size: int | None, cases: list[int]) -> list[dict[str, Any]]:
    """A few SGD steps of every case, behind a linear backbone as DDP would train it."""
    results = []
    comm = Comm.from_group(head_group_size=group_size) if dist.is_initialized() else Comm.single()
    for case in cases:
        head = make_head(case, comm)
        backbone = torch.eye(DIM, dtype=torch.float64).requires_grad_()
        optimizer = torch.optim.SGD([backbone, *head.parameters()], lr=0.02)
        sizes = uneven_split(BATCH, world_size)
        own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        record: dict[str, Any] = {"loss": [], "x": [], "learned": []}
        for step in range(STEPS):
            x, labels = batch_of(case, step)
            embeddings = x[own] @ backbone
            embeddings.retain_grad()
            value = head(embeddings, labels[own])
            optimizer.zero_grad()
            value.backward()
            if dist.is_initialized():
                dist.all_reduce(backbone.grad)
                backbone.grad /= world_size
            record["loss"].append(value.detach())
            record["x"].append(embeddings.grad / world_size)
            record["learned"].append({name: p.grad.clone() for name, p in learned_of(head).items()})
            optimizer.step()
        record["weight"] = head.weight.detach()
        record["state"] = state_of(head)
        results.append(record)
    return results


def twin(cases: list[int]) -> list[dict[str, Any]]:
    results = []
    for case in cases:
        loss, rate = CASES[case]
        head = make_head(case)
        weight = head.weight.detach().clone().requires_grad_()
        state = state_of(head)
        learned = {
            name.removeprefix("loss_"): p.detach().clone().requires_grad_() for name, p in learned_of(head).items()
        }
        backbone = torch.eye(DIM, dtype=torch.float64).requires_grad_()
        optimizer = torch.optim.SGD([backbone, weight, *learned.values()], lr=0.02)
        record: dict[str, Any] = {"loss": [], "x": [], "learned": []}
        memory: dict[int, tuple[int, Tensor]] = {}
        for step in range(STEPS):
            x, labels = batch_of(case, step)
            head.step.fill_(step)
            used = head._sample(labels, labels).index if rate < 1 else None
            embeddings = x @ backbone
            embeddings.retain_grad()
            value = twin_loss(loss, embeddings, weight, labels, used, step, case, state, learned, memory)
            optimizer.zero_grad()
            value.backward()
            record["loss"].append(value.detach())
            record["x"].append(embeddings.grad)
            record["learned"].append({"loss_" + name: p.grad.clone() for name, p in learned.items()})
            optimizer.step()
        record["weight"] = weight.detach()
        record["state"] = {name: value.detach() for name, value in state.items()}
        results.append(record)
    return results


def check(outcomes: list[list[dict[str, Any]]], shards: int, cases: list[int]) -> None:
    tight: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-9}
    for place, want in enumerate(twin(cases)):
        got = [rank[place] for rank in outcomes]
        message = f"{CASES[cases[place]]} on {len(got)} ranks: "
        for rank in got:
            torch.testing.assert_close(rank["loss"], want["loss"], **tight, msg=lambda m, t=message: t + "loss " + m)
            torch.testing.assert_close(
                rank["learned"], want["learned"], **tight, msg=lambda m, t=message: t + "learned " + m
            )
            assert rank["state"].keys() == want["state"].keys()
            for name, value in want["state"].items():
                torch.testing.assert_close(
                    rank["state"][name], value, **tight, msg=lambda m, t=message: t + "state " + m
                )
        for step in range(STEPS):
            joined = torch.cat([rank["x"][step] for rank in got])
            torch.testing.assert_close(joined, want["x"][step], **tight, msg=lambda m, t=message: t + "x " + m)
        for first in range(0, len(got), shards):
            joined = torch.cat([rank["weight"] for rank in got[first : first + shards]])
            torch.testing.assert_close(joined, want["weight"], **tight, msg=lambda m, t=message: t + "weight " + m)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_loss_equals_its_dense_twin(ranks: RankPool, world_size: int) -> None:
    cases = list(range(len(CASES)))
    check(ranks.run(world_size, train, None, cases), world_size, cases)


def test_replicated_heads_equal_the_dense_twins(ranks: RankPool) -> None:
    # ElasticFace+ orders its margins within a group of ranks, so it is not the twin's there
    # and copies of a head cannot remember
    cases = [i for i, (loss, _) in enumerate(CASES) if not (getattr(loss, "plus", False) or loss.class_buffers(DIM))]
    check(ranks.run(4, train, 2, cases), 2, cases)


def saved(rank: int, world_size: int, case: int) -> list[dict[str, Tensor]]:
    """The head's state dict after two steps, then the loss of a third."""
    head = make_head(case, Comm.from_group())
    sizes = uneven_split(BATCH, world_size)
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    for step in range(2):
        x, labels = batch_of(case, step)
        head(x[own], labels[own])
    state = {name: value.clone() for name, value in head.state_dict().items()}
    x, labels = batch_of(case, 2)
    return [state, {"loss": head(x[own], labels[own]).detach()}]


def resumed(rank: int, world_size: int, case: int, state: dict[str, Tensor]) -> Tensor:
    head = make_head(case, Comm.from_group())
    head.load_state_dict(state)
    sizes = uneven_split(BATCH, world_size)
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    x, labels = batch_of(case, 2)
    return head(x[own], labels[own]).detach()


@pytest.mark.parametrize("case", [i for i, (loss, _) in enumerate(CASES) if loss.initial_state(9)][1::2])
def test_state_goes_on_on_another_number_of_ranks(ranks: RankPool, case: int) -> None:
    parts = ranks.run(2, saved, case)
    whole = dict(parts[0][0]) | {"weight": torch.cat([state["weight"] for state, _ in parts])}
    fresh = make_head(case).state_dict()
    assert any(not torch.equal(whole[name], fresh[name]) for name in fresh if name.startswith("loss_"))
    for value in ranks.run(3, resumed, case, whole):
        torch.testing.assert_close(value, parts[0][1]["loss"])


# --- additions --------------------------------------------------------------------------------------------------------

ADDITIONS: list[AuxiliaryLoss] = [
    Triplet(weight=0.5),
    Triplet(weight=2.0, normalize=False, margin=1.0),
    Triplet(soft=True),
    SupCon(weight=0.3, temperature=0.2),
]


def naive_addition(addition: AuxiliaryLoss, x: Tensor, labels: Tensor) -> Tensor:
    """Row by row, as the papers' formulas read."""
    z = x / x.norm(dim=1, keepdim=True)
    values = []
    for i in range(len(x)):
        partners = [j for j in range(len(x)) if j != i and labels[j] == labels[i]]
        strangers = [j for j in range(len(x)) if labels[j] != labels[i]]
        if isinstance(addition, SupCon):
            everyone = torch.stack(
                [torch.exp(z[i] @ z[j] / addition.temperature) for j in range(len(x)) if j != i]
            ).sum()
            if partners:
                logs = [torch.log(torch.exp(z[i] @ z[p] / addition.temperature) / everyone) for p in partners]
                values.append(-torch.stack(logs).mean())
        elif partners and strangers:
            assert isinstance(addition, Triplet)
            y = z if addition.normalize else x
            gap = max((y[i] - y[p]).norm() for p in partners) - min((y[i] - y[n]).norm() for n in strangers)
            values.append(torch.log1p(torch.exp(gap)) if addition.soft else torch.relu(gap + addition.margin))
    return torch.stack(values).mean()


def with_additions(rank: int, world_size: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each addition: the loss with it, the embeddings' gradient, and the loss without."""
    found = []
    comm = Comm.from_group()
    sizes = uneven_split(BATCH, world_size)
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    for addition in ADDITIONS:
        head = PartialFC(
            embedding_dim=DIM,
            num_classes=CLASSES,
            loss="cosface",
            comm=comm,
            dtype=torch.float64,
            auxiliary_losses=[addition],
        )
        x, labels = batch_of(1, 1)
        mine = x[own].clone().requires_grad_()
        value = head(mine, labels[own] % 3)
        value.backward()
        head.auxiliary_losses = ()
        found.append((value.detach(), mine.grad / world_size, head(x[own], labels[own] % 3).detach()))
    return found


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_additions_equal_their_row_by_row_twins(ranks: RankPool, world_size: int) -> None:
    outcomes = ranks.run(world_size, with_additions)
    for place, addition in enumerate(ADDITIONS):
        x, labels = batch_of(1, 1)
        x.requires_grad_()
        wanted = addition.weight * naive_addition(addition, x, labels % 3)
        plain = PartialFC(embedding_dim=DIM, num_classes=CLASSES, loss="cosface", dtype=torch.float64)
        (wanted + plain(x, labels % 3)).backward()
        for value, _, without in (rank[place] for rank in outcomes):
            torch.testing.assert_close(value - without, wanted.detach(), rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(torch.cat([rank[place][1] for rank in outcomes]), x.grad, rtol=1e-6, atol=1e-9)


def with_centers(rank: int, world_size: int, state: dict[str, Tensor] | None, steps: list[int]) -> list[Any]:
    """Steps with a center loss, from a state or from the start: values, gradients and the state dict at the end."""
    head = PartialFC(
        embedding_dim=DIM, num_classes=CLASSES, loss="cosface", comm=Comm.from_group(), dtype=torch.float64,
        sample_rate=0.5, auxiliary_losses=[Center(weight=0.7)],
    )  # fmt: skip
    if state is not None:
        head.load_state_dict(state)
    sizes = uneven_split(BATCH, world_size)
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    values, grads = [], []
    for step in steps:
        x, labels = batch_of(2, step)
        mine = x[own].clone().requires_grad_()
        value = head(mine, (labels % 6 * 3)[own].clamp(max=CLASSES - 1))
        value.backward()
        values.append(value.detach())
        grads.append(mine.grad / world_size)
    return [values, grads, {name: tensor.clone() for name, tensor in head.state_dict().items()}]


def joined_state(parts: list[list[Any]]) -> dict[str, Tensor]:
    rows = {name: torch.cat([part[2][name] for part in parts]) for name in ("weight", "memory_center")}
    return dict(parts[0][2]) | rows


def test_center_loss_equals_its_dense_twin_and_goes_on_on_another_number_of_ranks(ranks: RankPool) -> None:
    plain = PartialFC(embedding_dim=DIM, num_classes=CLASSES, loss="cosface", dtype=torch.float64, sample_rate=0.5)
    centers = torch.zeros(CLASSES, DIM, dtype=torch.float64)
    values, grads = [], []
    for step in range(4):
        x, labels = batch_of(2, step)
        labels = (labels % 6 * 3).clamp(max=CLASSES - 1)
        x.requires_grad_()
        z = x / x.norm(dim=1, keepdim=True)
        value = plain(x, labels) + 0.7 * 0.5 * (z - centers[labels]).square().sum(1).mean()
        value.backward()
        values.append(value.detach())
        grads.append(x.grad)
        for j in set(labels.tolist()):
            of_class = z.detach()[labels == j]
            centers[j] -= 0.5 * (centers[j] - of_class).sum(0) / (1 + len(of_class))
    for world_size in (1, 2, 3):
        parts = ranks.run(world_size, with_centers, None, [0, 1])
        first = joined_state(parts)
        more = ranks.run(4 - world_size, with_centers, first, [2, 3])
        torch.testing.assert_close(parts[0][0] + more[0][0], values)
        for place in range(2):
            torch.testing.assert_close(torch.cat([part[1][place] for part in parts]), grads[place])
            torch.testing.assert_close(torch.cat([part[1][place] for part in more]), grads[2 + place])
        torch.testing.assert_close(joined_state(more)["memory_center"], centers)


def copies_that_remember(rank: int, world_size: int) -> str:
    comm = Comm.from_group(head_group_size=1)
    with pytest.raises(ValueError, match="head_group_size=1") as error:
        PartialFC(embedding_dim=DIM, num_classes=CLASSES, loss="cosface", comm=comm, auxiliary_losses=["center"])
    return str(error.value)


def test_copies_of_a_head_cannot_remember(ranks: RankPool) -> None:
    assert all("2 copies" in message for message in ranks.run(2, copies_that_remember))


def test_additions_by_name_and_when_nothing_can_be_said() -> None:
    head = PartialFC(
        embedding_dim=4, num_classes=9, loss="cosface", auxiliary_losses=["supcon", {"name": "triplet", "weight": 2}]
    )
    assert head.auxiliary_losses == (SupCon(), Triplet(weight=2))
    x = torch.randn(3, 4, requires_grad=True)
    for addition in head.auxiliary_losses:
        value = addition(x, torch.arange(3))
        assert value == 0
        value.backward()
    assert not x.grad.any()
    assert auxiliary_loss_from_config(Triplet(weight=2).to_config()) == Triplet(weight=2)
    for config, words in (
        ("quadruplet", "Center, .*SupCon, .*Triplet"),  # and what other tests have made
        ({"name": "supcon", "temperature": 0}, r"temperature must lie in \(0, inf\)"),
    ):
        with pytest.raises(ValueError, match=words):
            auxiliary_loss_from_config(config)
