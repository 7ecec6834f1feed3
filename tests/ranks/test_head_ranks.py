"""The head on real processes, against the dense float64 twin of one process."""

from __future__ import annotations

import copy
import pickle
import time
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lightning_pfc import PartialFC
from lightning_pfc.distributed import Comm, stated_rows
from lightning_pfc.losses import ArcFace, CombinedMargin, CosFace, Loss, NormFace, Softmax
from tests.ranks import RankPool
from tests.reference import dense_loss, uneven_split

DIM = 6
CASES: list[tuple[int, int, Loss, float]] = [
    # classes, global batch, loss, sample rate
    (23, 11, ArcFace(scale=32.0), 1.0),
    (23, 11, ArcFace(scale=32.0), 0.3),
    (23, 5, CosFace(scale=64.0), 0.0),
    (29, 8, ArcFace(scale=100.0, margin_grad="straight_through"), 0.5),
    (29, 8, NormFace(scale=16.0, label_smoothing=0.1), 0.5),
    (13, 9, CombinedMargin(scale=24.0, m1=1.05, m2=0.3, m3=0.1, interclass_filter=0.1), 1.0),
    (13, 9, Softmax(bias=True, label_smoothing=0.1), 0.4),
    (7, 4, Softmax(bias=True), 1.0),
]


def batch_of(case: int, step: int) -> tuple[Tensor, Tensor]:
    classes, batch, _, _ = CASES[case]
    generator = torch.Generator().manual_seed(100 * case + step)
    x = torch.randn(batch, DIM, dtype=torch.float64, generator=generator)
    return x, torch.randint(0, classes, (batch,), generator=generator)


def train(rank: int, world_size: int, group_size: int | None = None) -> list[dict[str, list[Tensor]]]:
    """Ten steps of every case with momentum and weight decay; embeddings come from a small linear backbone."""
    results = []
    comm = Comm.from_group(head_group_size=group_size) if dist.is_initialized() else Comm.single()
    for case, (classes, batch, loss, rate) in enumerate(CASES):
        head = PartialFC(
            embedding_dim=DIM, num_classes=classes, loss=loss, sample_rate=rate, seed=case, comm=comm, chunk_size=4,
            memory_budget=0 if case % 2 else 1 << 20, dtype=torch.float64, init_std=1.0,
        )  # fmt: skip
        backbone = torch.eye(DIM, dtype=torch.float64).requires_grad_()
        optimizer = torch.optim.SGD([backbone, *head.parameters()], lr=0.05, momentum=0.9, weight_decay=0.01)
        sizes = uneven_split(batch, world_size)
        start = sum(sizes[:rank])
        record: dict[str, list[Tensor]] = {"loss": [], "x": [], "weight_grad": []}
        for step in range(10):
            x, labels = batch_of(case, step)
            own = slice(start, start + sizes[rank])
            embeddings = x[own] @ backbone
            embeddings.retain_grad()
            value = head(embeddings, labels[own])
            optimizer.zero_grad()
            value.backward()
            if dist.is_initialized():  # what DDP does
                dist.all_reduce(backbone.grad)
                backbone.grad /= world_size
            record["loss"].append(value.detach())
            record["x"].append(embeddings.grad / world_size)
            record["weight_grad"].append(head.weight.grad.clone())
            optimizer.step()
        record["weights"] = [head.weight.detach(), *([] if head.bias is None else [head.bias.detach()])]
        record["backbone"] = [backbone.detach()]
        results.append(record)
    return results


def twin() -> list[dict[str, list[Tensor]]]:
    """The same ten steps, dense, on one process, with the classes that the head's rule draws."""
    results = []
    for case, (classes, _, loss, rate) in enumerate(CASES):
        head = PartialFC(
            embedding_dim=DIM,
            num_classes=classes,
            loss=loss,
            sample_rate=rate,
            seed=case,
            dtype=torch.float64,
            init_std=1.0,
        ).to("cpu")
        weight = head.weight.detach().clone().requires_grad_()
        bias = None if head.bias is None else head.bias.detach().clone().requires_grad_()
        backbone = torch.eye(DIM, dtype=torch.float64).requires_grad_()
        parameters = [backbone, weight, *([] if bias is None else [bias])]
        optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01)
        record: dict[str, list[Tensor]] = {"loss": [], "x": [], "weight_grad": []}
        for step in range(10):
            x, labels = batch_of(case, step)
            head.step.fill_(step)
            used = head._sample(labels, labels).index if rate < 1 else None
            embeddings = x @ backbone
            embeddings.retain_grad()
            value = dense_loss(embeddings, weight, labels, loss, bias, used)
            optimizer.zero_grad()
            value.backward()
            record["loss"].append(value.detach())
            record["x"].append(embeddings.grad)
            record["weight_grad"].append(weight.grad.clone())
            optimizer.step()
        record["weights"] = [weight.detach(), *([] if bias is None else [bias.detach()])]
        record["backbone"] = [backbone.detach()]
        results.append(record)
    return results


def check_against_twin(outcomes: list[list[dict[str, list[Tensor]]]], shards: int) -> None:
    expected = twin()
    for case, want in enumerate(expected):
        got = [rank[case] for rank in outcomes]
        for rank in got:
            torch.testing.assert_close(rank["loss"], want["loss"], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(rank["backbone"], want["backbone"], rtol=1e-7, atol=1e-9)
        for step in range(10):
            joined = torch.cat([rank["x"][step] for rank in got])
            torch.testing.assert_close(joined, want["x"][step], rtol=1e-6, atol=1e-9)
        for first in range(0, len(got), shards):
            group = got[first : first + shards]
            for step in range(10):
                joined = torch.cat([rank["weight_grad"][step] for rank in group])
                torch.testing.assert_close(joined, want["weight_grad"][step], rtol=1e-6, atol=1e-9)
            for part, whole in enumerate(want["weights"]):
                joined = torch.cat([rank["weights"][part] for rank in group])
                torch.testing.assert_close(joined, whole, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_training_equals_the_dense_twin(ranks: RankPool, world_size: int) -> None:
    check_against_twin(ranks.run(world_size, train, timeout=400), world_size)


def test_training_without_a_group_equals_the_dense_twin(ranks: RankPool) -> None:
    check_against_twin(ranks.run(1, train, group=False), 1)


def test_replicated_shards_equal_the_dense_twin(ranks: RankPool) -> None:
    check_against_twin(ranks.run(4, train, 2, timeout=400), 2)
    check_against_twin(ranks.run(2, train, 1), 1)


# --- errors travel ----------------------------------------------------------------------------------------------------


def bad_input(rank: int, world_size: int, what: str) -> str:
    head = PartialFC(embedding_dim=DIM, num_classes=10, loss=ArcFace())
    x, labels = torch.randn(3, DIM), torch.tensor([0, 1, 2])
    if rank == 1:
        x, labels = {
            "label": (x, torch.tensor([0, 1, 10])),
            "float": (x, labels.float()),
            "width": (torch.randn(3, DIM + 1), labels),
            "nan": (x * float("nan"), labels),
        }[what]
    try:
        head(x, labels)
    except (ValueError, TypeError, FloatingPointError) as error:
        # the group is still usable: nobody is left in a collective
        dist.barrier()
        return f"{type(error).__name__}: {error}"
    return "no error"


@pytest.mark.parametrize(
    ("what", "words"),
    [("label", "ValueError.*labels.*10"), ("float", "TypeError.*float32"), ("width", "ValueError.*embedding_dim=6"),
     ("nan", "FloatingPointError.*NaN")],
)  # fmt: skip
def test_bad_input_of_one_rank_raises_on_all(ranks: RankPool, what: str, words: str) -> None:
    messages = ranks.run(2, bad_input, what)
    for message in messages:
        assert pytest.importorskip("re").search(words, message), message
    assert "rank 1" in messages[0]


def too_many_ranks(rank: int, world_size: int) -> str:
    try:
        PartialFC(embedding_dim=DIM, num_classes=2, loss=ArcFace())
    except ValueError as error:
        return str(error)
    return "no error"


def test_more_ranks_than_classes(ranks: RankPool) -> None:
    for message in ranks.run(3, too_many_ranks):
        assert "num_classes=2" in message
        assert "at most 2 ranks" in message


def absent_rank(rank: int, world_size: int, given_up: str) -> str:
    from datetime import timedelta

    comm = Comm.from_group(timeout=timedelta(seconds=1))
    head = PartialFC(embedding_dim=DIM, num_classes=10, loss=ArcFace(), comm=comm)
    if rank == 1:
        while not Path(given_up).exists():
            time.sleep(0.02)
        return "stayed away"
    try:
        head(torch.randn(2, DIM), torch.tensor([0, 1]))
    except RuntimeError as error:
        return str(error)
    finally:
        Path(given_up).touch()
    return "no error"


def test_a_head_called_on_one_rank_only_names_the_absent(ranks: RankPool, tmp_path: Path) -> None:
    message, other = ranks.run(2, absent_rank, str(tmp_path / "given up"))
    assert other == "stayed away"
    assert "for rank 1, which never came" in message
    assert "'PartialFC.forward'" in message


def different_places(rank: int, world_size: int) -> str:
    head = PartialFC(embedding_dim=DIM, num_classes=10, loss=ArcFace())
    try:
        if rank == 0:
            head(torch.randn(2, DIM), torch.tensor([0, 1]))
        else:
            head.target_ranks(torch.randn(2, DIM), torch.tensor([0, 1]))
    except RuntimeError as error:
        return str(error)
    return "no error"


def test_ranks_that_left_step_are_named(ranks: RankPool) -> None:
    for message in ranks.run(2, different_places):
        assert "rank 0 is at 'PartialFC.forward'" in message
        assert "rank 1 is at 'PartialFC.target_ranks'" in message


# --- shards -----------------------------------------------------------------------------------------------------------


def shard_facts(rank: int, world_size: int) -> tuple[range, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    head = PartialFC(embedding_dim=4, num_classes=3001, loss=ArcFace(), seed=9)
    x, labels = torch.randn(6, 4), torch.tensor([0, 1500, 3000, 7, 8, 9])
    ranked = head.target_ranks(x[rank::world_size], labels[rank::world_size])
    return head.class_range, head.weight.detach(), *ranked


def test_initial_centers_and_ranks_do_not_depend_on_the_split(ranks: RankPool) -> None:
    (one,) = ranks.run(1, shard_facts)
    for world_size in (2, 3):
        parts = ranks.run(world_size, shard_facts)
        assert parts[0][0].start == 0
        assert sum(len(part[0]) for part in parts) == 3001
        assert torch.equal(torch.cat([part[1] for part in parts]), one[1])
        for rank, part in enumerate(parts):
            assert torch.equal(part[2], one[2][rank::world_size])
            torch.testing.assert_close(part[3], one[3][rank::world_size])


def best_of(rank: int, world_size: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    head = PartialFC(embedding_dim=4, num_classes=11, loss=ArcFace(), seed=9, chunk_size=2)
    x = torch.randn(7, 4)
    scores, classes = head.top_classes(x[rank::world_size], 6)  # more than a rank of three has
    return scores, classes


def test_top_classes_do_not_depend_on_the_split(ranks: RankPool) -> None:
    (one,) = ranks.run(1, best_of)
    for world_size in (2, 3):
        for rank, (score, label) in enumerate(ranks.run(world_size, best_of)):
            torch.testing.assert_close(score, one[0][rank::world_size])
            assert torch.equal(label, one[1][rank::world_size])


def built_too_early(rank: int, world_size: int) -> list[str]:
    """A head built before the group, then used under a group by a script that has no strategy of ours."""
    import tempfile

    head = PartialFC(embedding_dim=4, num_classes=10, loss=ArcFace())
    folder = tempfile.mkdtemp()
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    head.to("cpu")  # a group of one is no reason to refuse
    dist.destroy_process_group()
    return [str(tuple(head.weight.shape))]


def test_a_group_of_one_is_no_group(ranks: RankPool) -> None:
    assert ranks.run(1, built_too_early, group=False) == [["(10, 4)"]]


def refused(rank: int, world_size: int) -> str:
    from lightning_pfc.distributed.owner import set_owner

    head = PartialFC.__new__(PartialFC)
    set_owner("DDPStrategy")
    try:
        head.__init__(embedding_dim=4, num_classes=10, loss=ArcFace())  # type: ignore[misc]
    except RuntimeError as error:
        return str(error)
    finally:
        set_owner(None)
    return "no error"


def test_a_foreign_strategy_is_refused_at_birth(ranks: RankPool) -> None:
    for message in ranks.run(2, refused):
        assert 'strategy="pfc"' in message


def filtered(rank: int, world_size: int) -> tuple[float, Tensor, Tensor]:
    """Loss, this rank's embeddings' gradient and centers' gradient with a coarse filter."""
    comm = Comm.from_group() if dist.is_initialized() else Comm.single()
    head = PartialFC(
        embedding_dim=DIM, num_classes=230, loss=ArcFace(), comm=comm, gradient_filter=0.1, init_std=1.0, chunk_size=50
    )
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 230, (12,), generator=generator)
    x = torch.randn(12, DIM, generator=generator)
    sizes = uneven_split(len(x), world_size)
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    leaf = x[own].requires_grad_()
    loss = head(leaf, labels[own])
    loss.backward()
    assert leaf.grad is not None
    assert head.weight.grad is not None
    return loss.item(), leaf.grad / world_size, head.weight.grad


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_gradient_filter_leaves_out_the_same_on_any_number_of_ranks(ranks: RankPool, world_size: int) -> None:
    loss, x, weight = filtered(0, 1)
    untouched = int((weight == 0).all(1).sum())
    assert 0 < untouched < 230, "all or nothing was left out: nothing was tested"
    parts = ranks.run(world_size, filtered)
    assert [part[0] for part in parts] == pytest.approx([loss] * world_size, rel=1e-5)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), x, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.cat([part[2] for part in parts]), weight, rtol=1e-4, atol=1e-6)


def pickled(rank: int, world_size: int) -> tuple[bytes, float, float, list[str]]:
    head = PartialFC(embedding_dim=DIM, num_classes=11, loss=CosFace(), init_std=0.5)
    x, labels = torch.ones(2, DIM), torch.tensor([rank, 9])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        stated_rows._warned.clear()
        copy.deepcopy(head)
        assert not said
        written = pickle.dumps(head)
    return written, float(head(x, labels)), float(pickle.loads(written)(x, labels)), [str(w.message) for w in said]


def test_a_pickled_head_knows_whose_rows_it_has(ranks: RankPool) -> None:
    """One rank's rows, opened by a single process, passed for the first classes of all, without a word."""
    results = ranks.run(2, pickled)
    for rank, (written, loss, again, said) in enumerate(results):
        assert loss == again
        assert [
            text.startswith(f"a state dict or module is written that holds the classes {6 * rank} to") for text in said
        ]
        head = pickle.loads(written).to("cpu")
        assert head.class_range == (range(6), range(6, 11))[rank]
        where = f"rank {rank} of 2, with the classes {6 * rank} to .* of 11 alone, and this is rank 0 of 1"
        for use in (
            lambda h: h(torch.ones(2, DIM), torch.tensor([0, 9])),
            lambda h: h.top_classes(torch.ones(1, DIM), 2),
        ):
            with pytest.raises(RuntimeError, match=where):
                use(head)
