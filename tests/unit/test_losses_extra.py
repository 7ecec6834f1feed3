"""What can be seen of the further losses without other processes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lightning_pfc import PartialFC
from lightning_pfc import losses as L
from lightning_pfc.keyed_random.uniform import keyed_normal, keyed_uniform
from tests.ranks.test_losses_extra_ranks import CASES, check, train

ALL = [L.AdaCos, L.AdaFace, L.Circle, L.CurricularFace, L.ElasticFace, L.MVSoftmax, L.MagFace, L.SphereFace2, L.UniFace]


def test_every_loss_equals_its_dense_twin_without_a_group() -> None:
    cases = list(range(len(CASES)))
    check([train(0, 1, None, cases)], 1, cases)


@pytest.mark.parametrize("loss", [loss for loss, _ in CASES], ids=str)
def test_config_round_trip(loss: L.Loss) -> None:
    assert L.loss_from_config(loss.to_config()) == loss


@pytest.mark.parametrize(
    "loss", [*(cls() for cls in ALL), L.SubCenterArcFace(), L.MarginWarmup(loss="arcface")], ids=str
)
def test_one_class_and_one_row_are_finite(loss: L.Loss) -> None:
    head = PartialFC(embedding_dim=4, num_classes=1, loss=loss, init_std=1.0)
    x = torch.tensor([[3.0, 0.0, 4.0, 0.0]], requires_grad=True)
    value = head(x, torch.tensor([0]))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(buffer).all() for buffer in head.buffers())


@pytest.mark.parametrize("loss", [*(cls() for cls in ALL), L.SubCenterArcFace()], ids=str)
def test_a_few_steps_learn_something(loss: L.Loss) -> None:
    """Twelve points, four classes: plain SGD on the head and the points gets them all right."""
    torch.manual_seed(0)
    head = PartialFC(embedding_dim=8, num_classes=4, loss=loss, init_std=0.5)
    x = torch.randn(12, 8, requires_grad=True)
    labels = torch.arange(12) % 4
    optimizer = torch.optim.Adam([x, *head.parameters()], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        head(x, labels).backward()
        optimizer.step()
    assert (head.target_ranks(x, labels).rank == 0).all()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("AdaFace", {"h": 0.0}, "h must lie in"),
        ("AdaFace", {"momentum": 1.0}, "momentum must lie in"),
        ("MagFace", {"upper_norm": 5.0}, "upper_norm must lie in"),
        ("MagFace", {"upper_margin": 0.1}, "upper_margin must lie in"),
        ("CurricularFace", {"interclass_filter": 0.4}, "no filter"),
        ("MVSoftmax", {"hard_weight": 0.9}, "hard_weight must lie in"),
        ("MVSoftmax", {"margin_type": "arc"}, "additive, angular"),
        ("ElasticFace", {"std": -1.0}, "std must lie in"),
        ("ElasticFace", {"std": 0.6}, r"std must lie in \[0, 0.535"),
        ("ElasticFace", {"std": 1.5, "margin_type": "additive"}, r"std must lie in \[0, 1\]"),
        ("ElasticFace", {"plus": 1}, "plus must be True or False"),
        ("SphereFace2", {"balance": 1.0}, "balance must lie in"),
        ("SphereFace2", {"label_smoothing": 0.1}, "leave it 0"),
        ("UniFace", {"balance": 0.0}, "balance must lie in"),
        ("Circle", {"margin": 1.0}, "margin must lie in"),
        ("AdaCos", {"dynamic": 1}, "dynamic must be True or False"),
        ("SubCenterArcFace", {"centers": 0}, "centers must be an integer"),
        ("MarginWarmup", {"loss": "normface"}, "NormFace has no margin"),
        ("MarginWarmup", {"loss": "arcface", "steps": 0}, "steps must be an integer"),
    ],
)
def test_wrong_arguments_are_named(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        L.loss_from_config({"name": name, **arguments})


def test_adaface_gives_poor_images_an_angle_and_good_ones_an_offset() -> None:
    loss = L.AdaFace(scale=1.0, margin=0.4, h=1.0)
    state = {"mean": torch.tensor(20.0), "std": torch.tensor(10.0)}
    rows = L.BatchInfo(
        torch.zeros(3).long(), torch.tensor([1.0, 20.0, 90.0]), None, 0, torch.tensor(0), torch.arange(3)
    )
    logits = loss.target_logits(torch.full((3,), 0.3), rows, state)
    theta = math.acos(0.3)
    torch.testing.assert_close(
        logits, torch.tensor([math.cos(theta + 0.4), 0.3 - 0.4, math.cos(theta - 0.4) - 0.8]), atol=1e-3, rtol=1e-3
    )


def test_magface_norms_move_apart_from_directions() -> None:
    """The regulariser's gradient is along the embedding and pulls its norm up."""
    head = PartialFC(embedding_dim=4, num_classes=3, loss=L.MagFace(), init_std=1.0)
    x = torch.tensor([[12.0, 3.0, 0.0, 1.0]], requires_grad=True)
    head(x, torch.tensor([1])).backward()
    without = x.detach().clone().requires_grad_()
    twin = PartialFC(embedding_dim=4, num_classes=3, loss=L.ArcFace(), init_std=1.0)
    twin(without, torch.tensor([1])).backward()
    assert abs((without.grad * x).sum()) < 1e-3
    assert (x.grad * x).sum() < -1e-3


def test_warmup_begins_without_and_ends_with_the_whole_margin() -> None:
    x, labels = torch.randn(5, 4), torch.arange(5)
    heads = [
        PartialFC(embedding_dim=4, num_classes=9, loss=loss)
        for loss in (L.MarginWarmup(loss=L.CosFace(), steps=2), L.NormFace(), L.CosFace())
    ]
    warm, none, whole = (torch.stack([head(x, labels).detach() for _ in range(4)]) for head in heads)
    torch.testing.assert_close(warm[0], none[0])
    assert none[1] < warm[1] < whole[1]
    torch.testing.assert_close(warm[2:], whole[2:])


def test_sphereface2_starts_balanced() -> None:
    loss, classes = L.SphereFace2(), 5000
    bias = loss.initial_parameters(classes)["bias"].double()
    g = 2 * 0.5**loss.power - 1
    positive = loss.balance * torch.sigmoid(-(loss.scale * (g - loss.margin) + bias))
    negative = (1 - loss.balance) * (classes - 1) * torch.sigmoid(loss.scale * (g + loss.margin) + bias)
    torch.testing.assert_close(positive, negative, rtol=1e-4, atol=0.0)


def test_subcenter_rows_hold_the_centers_side_by_side() -> None:
    head = PartialFC(embedding_dim=4, num_classes=6, loss=L.SubCenterArcFace(centers=3), init_std=1.0)
    x = torch.eye(4)[:1]
    head(x, torch.tensor([2])).backward()
    assert head.weight.shape == (6, 12)
    touched = head.weight.grad.view(6, 3, 4).abs().sum(2) > 0
    assert (touched.sum(1) == 1).all(), "only the nearest center of a class learns"


def test_keyed_numbers_are_uniform_normal_and_depend_on_every_key() -> None:
    index = torch.arange(20000)
    u = keyed_uniform(3, torch.tensor(7), index)
    assert ((u > 0) & (u < 1)).all()
    assert torch.histc(u.float(), 10, 0, 1).sub(2000).abs().max() < 200
    z = keyed_normal(3, torch.tensor(7), index)
    assert abs(z.mean()) < 0.03
    assert abs(z.std() - 1) < 0.03
    others = [keyed_uniform(4, torch.tensor(7), index), keyed_uniform(3, torch.tensor(8), index),
              keyed_uniform(3, torch.tensor(7), index, 1), keyed_uniform(3, torch.tensor(7), index + 1)]  # fmt: skip
    for other in others:
        assert abs(torch.corrcoef(torch.stack([u, other]))[0, 1]) < 0.03


def test_vpl_mixes_in_what_was_seen_lately_and_only_in_training() -> None:
    head = PartialFC(embedding_dim=4, num_classes=6, loss=L.VPL(start=1, lifetime=1, share=0.9), init_std=1.0)
    plain = PartialFC(embedding_dim=4, num_classes=6, loss=L.ArcFace(), init_std=1.0)
    x, labels = torch.randn(3, 4), torch.tensor([0, 3, 3])
    first, second = head(x, labels), head(x, labels)  # nothing is mixed in before the second
    torch.testing.assert_close(first, plain(x, labels))
    assert second < first - 0.1, "the target's own embedding is most of its prototype"
    head(x, labels)
    torch.testing.assert_close(head.eval()(x, labels), plain.eval()(x, labels))
    assert head.memory_seen.tolist() == [3.0, 0.0, 0.0, 3.0, 0.0, 0.0]  # type: ignore[operator]
    torch.testing.assert_close(head.memory_feature[3], torch.nn.functional.normalize(x[2], dim=0))  # type: ignore[index]
