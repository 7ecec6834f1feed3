"""Mixed pictures: two labels a row, in one pass of the head, against two passes and on real processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lightning_pfc import PartialFC, losses
from lightning_pfc.distributed import Comm
from lightning_pfc.losses.auxiliary import Triplet
from lightning_pfc.optim import SparseSGD
from tests.ranks import RankPool
from tests.reference import dense_loss, uneven_split

DIM, CLASSES, BATCH = 6, 23, 10
LOSSES = [
    losses.ArcFace(scale=16.0),
    losses.Softmax(bias=True, label_smoothing=0.1),
    losses.CurricularFace(scale=16.0),
    losses.ElasticFace(scale=16.0),
    losses.AdaFace(scale=16.0),
]
RATES = (1.0, 0.4)


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings, first and second labels, and shares that differ by row."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(BATCH, DIM, dtype=torch.float64, generator=generator)
    labels, other = torch.randint(0, CLASSES, (2, BATCH), generator=generator)
    other[3] = labels[3]
    return x, labels, other, torch.rand(BATCH, dtype=torch.float64, generator=generator)


def make(loss: losses.Loss, rate: float, comm: Comm, **options: Any) -> PartialFC:
    return PartialFC(
        embedding_dim=DIM, num_classes=CLASSES, loss=loss, sample_rate=rate, comm=comm, chunk_size=5,
        dtype=torch.float64, init_std=1.0, **options,
    )  # fmt: skip


def mixed(rank: int, world_size: int, group_size: int | None, additions: bool) -> list[list[Tensor]]:
    """Two steps of every loss; what each rank sees of value, gradient and centers."""
    comm = Comm.from_group(head_group_size=group_size) if dist.is_initialized() else Comm.single()
    sizes = uneven_split(BATCH, world_size)
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    found = []
    for loss in LOSSES:
        for rate in RATES:
            head = make(loss, rate, comm, auxiliary_losses=[Triplet(margin=2.0)] if additions else [])
            optimizer = SparseSGD(head.parameters(), lr=0.1, momentum=0.9)
            x, labels, other, share = (part[own] for part in batch())
            x.requires_grad_()
            seen: list[Tensor] = []
            for _ in range(2):
                output = head.loss_output(x, labels, other, share)
                value = output.loss
                optimizer.zero_grad()
                x.grad = None
                value.backward()
                optimizer.step()
                assert x.grad is not None
                seen += [value.detach(), x.grad / world_size, output.target_cosine]
            found.append([*seen, head.weight.detach().clone()])
    return found


@pytest.mark.parametrize(("world_size", "group_size"), [(2, None), (3, None), (4, 2)])
def test_any_number_of_ranks_sees_what_one_does(ranks: RankPool, world_size: int, group_size: int | None) -> None:
    additions = group_size is None  # copies of a head compare the embeddings of their own ranks
    [alone] = ranks.run(1, mixed, None, additions, group=False)
    outcomes = ranks.run(world_size, mixed, group_size, additions)
    shards = group_size or world_size
    for case, want in enumerate(alone):
        got = [outcome[case] for outcome in outcomes]
        for place, whole in enumerate(want):
            if place % 3 == 0 and place < 6:
                for rank in got:
                    torch.testing.assert_close(rank[place], whole, rtol=1e-9, atol=1e-9)
            elif place < 6:
                torch.testing.assert_close(torch.cat([rank[place] for rank in got]), whole, rtol=1e-7, atol=1e-9)
            else:
                for first in range(0, world_size, shards):
                    joined = torch.cat([rank[place] for rank in got[first : first + shards]])
                    torch.testing.assert_close(joined, whole, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("loss", LOSSES[:2], ids=str)
def test_every_row_against_the_dense_twin(loss: losses.Loss) -> None:
    head = make(loss, 1.0, Comm.single())
    x, labels, other, share = batch()
    x.requires_grad_()
    value = head(x, labels, other, share)
    value.backward()
    weight, bias = head.weight.detach().clone().requires_grad_(), head.bias
    leaf = x.detach().clone().requires_grad_()
    want = sum(
        share[i] * dense_loss(leaf[i : i + 1], weight, labels[i : i + 1], loss, bias)
        + (1 - share[i]) * dense_loss(leaf[i : i + 1], weight, other[i : i + 1], loss, bias)
        for i in range(BATCH)
    ) / BATCH  # fmt: skip
    assert isinstance(want, Tensor)
    want.backward()
    torch.testing.assert_close(value, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(x.grad, leaf.grad, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(head.weight.grad, weight.grad, rtol=1e-8, atol=1e-12)


def test_one_share_for_all_is_two_calls_weighted() -> None:
    x, labels, other, _ = batch()
    head = make(losses.CosFace(), 1.0, Comm.single(), auxiliary_losses=[Triplet(margin=2.0)])
    want = 0.3 * head(x, labels) + 0.7 * head(x, other)
    torch.testing.assert_close(head(x, labels, other, 0.3), want)
    torch.testing.assert_close(head(x, labels, other, torch.tensor(0.3, dtype=torch.float64)), want)


def test_centers_updated_in_the_backward_pass_take_both_labels() -> None:
    results = []
    for in_backward in (False, True):
        head = make(losses.ArcFace(), 0.4, Comm.single())
        optimizer = SparseSGD(head.parameters(), lr=0.1, momentum=0.9, update_in_backward=in_backward)
        x, labels, other, share = batch()
        head(x.requires_grad_(), labels, other, share).backward()
        optimizer.step()
        results.append(head.weight.detach().clone())
    torch.testing.assert_close(*results)


def bad_input(rank: int, world_size: int) -> list[str]:
    head = make(losses.ArcFace(), 1.0, Comm.from_group())
    x, labels, other, share = batch()
    broken = [
        (labels, other[:3] if rank == 1 else other, share),
        (labels, other + (CLASSES if rank == 1 else 0), share),
        (labels, other, share + (1.0 if rank == 1 else 0.0)),
        (labels, other, share[:2] if rank == 1 else share),
        (labels, None if rank == 1 else other, share),
    ]
    found = []
    for arguments in broken:
        with pytest.raises(ValueError, match=r".") as error:
            head(x, *arguments)
        found.append(str(error.value))
    return found


def test_bad_second_labels_are_an_error_on_every_rank(ranks: RankPool) -> None:
    for messages in ranks.run(2, bad_input):
        for message, words in zip(
            messages,
            (
                "other is torch.int64 of shape (3,)",
                "outside [0, num_classes=23)",
                "must lie in [0, 1]",
                "share has shape (2,)",
                "whether rows have a second label differs between ranks: [1, 0]",
            ),
            strict=True,
        ):
            assert words in message
