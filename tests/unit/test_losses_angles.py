"""The target's logit against the angle: it never rises where samples start, and is the papers' at their own numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_pfc import PartialFC
from lightning_pfc import losses as L
from lightning_pfc.losses.margins import psi

# Every loss at the numbers of its paper.
PAPERS: list[L.Loss] = [
    L.Softmax(),
    L.NormFace(),
    *(L.SphereFace(margin=m) for m in (1.35, 1.7, 2, 3, 4)),
    L.CosFace(margin=0.35),
    L.ArcFace(),
    L.CombinedMargin(m1=1.0, m2=0.3, m3=0.2),
    L.CombinedMargin(m1=0.9, m2=0.4, m3=0.15),
    L.CombinedMargin(m1=2.0, m2=0.0, m3=0.0),
    L.CombinedMargin(m1=4.0, m2=0.3, m3=0.2),
    L.AdaFace(),
    L.MagFace(),
    L.CurricularFace(),
    L.MVSoftmax(),
    L.MVSoftmax(margin_type="angular", margin=0.5),
    L.ElasticFace(),
    L.ElasticFace(margin_type="additive", margin=0.35, plus=True),
    L.SphereFace2(),
    L.SphereFace2(margin_grad="straight_through"),
    L.UniFace(),
    L.UniFace(clamp_logits=True),
    L.Circle(),
    L.DSoftmax(),
    L.SubCenterArcFace(),
    L.VPL(),
    L.AdaCos(),
    L.MarginWarmup(loss=L.SphereFace(margin=4), steps=4),
]
# Fresh embeddings lie within a few 1/sqrt(D) of a right angle to any center; with D = 32 that is 130 degrees.
FRESH = math.radians(130.0)


def target_logits(loss: L.Loss, theta: Tensor, norm: float = 30.0, step: int = 2) -> tuple[Tensor, Tensor]:
    """Logits at angles, and their derivatives by the cosine."""
    state = loss.initial_state(1000) | loss.initial_parameters(1000)
    values, slopes = [], []
    for angle in theta:  # one row at a time: what depends on the batch is then the same for all
        cosine = torch.cos(angle).view(1).requires_grad_()
        rows = L.BatchInfo(
            torch.zeros(1).long(), torch.full((1,), norm), cosine.detach(), 0, torch.tensor(step), torch.zeros(1).long()
        )
        value = loss.target_logits(cosine, rows, state)
        slopes.append(torch.autograd.grad(value.sum(), cosine)[0])
        values.append(value.detach())
    return torch.cat(values), torch.cat(slopes)


@pytest.mark.parametrize("loss", PAPERS, ids=str)
@pytest.mark.parametrize("norm", [5.0, 60.0, 120.0])
def test_never_rises_where_samples_start(loss: L.Loss, norm: float) -> None:
    theta = torch.linspace(0.0, FRESH, 200, dtype=torch.float64)
    values, slopes = target_logits(loss, theta, norm)
    assert (values.diff() <= 1e-5 * loss.scale).all()
    assert (slopes >= -1e-6 * loss.scale).all()


def test_all_losses_are_looked_at() -> None:
    assert {type(loss).__name__ for loss in PAPERS} >= {
        name for name in L.loss_names() if getattr(L, name, None) is not None
    }


@pytest.mark.parametrize(
    "loss", [L.SphereFace(margin=m) for m in (1.35, 2, 3, 4, 7.5)] + [L.CombinedMargin(m1=3, m2=0.5)]
)
@pytest.mark.parametrize("margin_grad", ["exact", "straight_through"])
def test_a_factor_falls_all_the_way(loss: L.Loss, margin_grad: str) -> None:
    loss = L.loss_from_config(loss.to_config() | {"margin_grad": margin_grad})
    theta = torch.linspace(0.0, math.pi, 500, dtype=torch.float64)
    values, slopes = target_logits(loss, theta)
    assert (values.diff() <= 1e-6).all()
    assert (slopes >= -1e-6).all()


def test_the_value_of_the_paper() -> None:
    """At a right angle, m = 4 and s = 30, psi is -3; the cosine would be 1."""
    right = torch.tensor([math.pi / 2], dtype=torch.float64)
    assert target_logits(L.SphereFace(scale=30.0, margin=4), right)[0].item() == pytest.approx(-90.0)
    assert target_logits(L.SphereFace(scale=30.0, margin=4, beyond_pi="cosine"), right)[0].item() == pytest.approx(30.0)
    assert target_logits(L.CombinedMargin(scale=30.0, m1=4, m2=0), right)[0].item() == pytest.approx(-90.0)
    assert target_logits(L.SphereFace(scale=30.0, margin=2), right)[0].item() == pytest.approx(-30.0)


def test_without_a_factor_the_cosine_goes_on() -> None:
    opposite = torch.tensor([math.pi - 1e-6], dtype=torch.float64)
    for loss in (L.ArcFace(scale=1.0), L.CombinedMargin(scale=1.0, m2=0.5)):
        assert target_logits(loss, opposite)[0].item() == pytest.approx(math.cos(math.pi + 0.5), abs=1e-3)


def test_psi_in_multiples_of_pi() -> None:
    """Chebyshev's polynomials, as the authors' code has them for m up to 4."""
    theta = torch.linspace(0.0, math.pi, 400, dtype=torch.float64)[1:-1]
    c = theta.cos()
    for m, polynomial in {2: 2 * c**2 - 1, 3: 4 * c**3 - 3 * c, 4: 8 * c**4 - 8 * c**2 + 1}.items():
        k = (m * theta / math.pi).floor()
        torch.testing.assert_close(psi(m * theta), (-1.0) ** k * polynomial - 2 * k, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "loss",
    [
        L.SphereFace(scale=30.0, margin=2),
        L.SphereFace(scale=30.0, margin=4),
        L.CombinedMargin(scale=30.0, m1=2, m2=0.0),
        L.MagFace(scale=30.0, easy_margin=True),
        L.MVSoftmax(scale=30.0, easy_margin=True),
        L.MVSoftmax(scale=30.0, easy_margin=True, margin_type="angular"),
        L.UniFace(scale=30.0, clamp_logits=True),
        L.SphereFace2(margin_grad="straight_through"),
    ],
    ids=str,
)
def test_trains_where_the_logit_is_not_a_plain_curve(loss: L.Loss) -> None:
    """100 classes and a small network: nearly all samples find their own center."""
    assert accuracy(loss) > 0.97


def test_a_logit_that_rises_again_trains_nothing() -> None:
    assert accuracy(L.SphereFace(scale=30.0, margin=2, beyond_pi="cosine")) < 0.2


def accuracy(loss: L.Loss) -> float:
    """Of the nearest center after 150 steps."""
    torch.manual_seed(0)
    means = torch.randn(100, 32)
    net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64))
    head = PartialFC(embedding_dim=64, num_classes=100, loss=loss, init_std=0.01).to("cpu")
    optimizer = torch.optim.Adam([*net.parameters(), *head.parameters()], lr=3e-3)
    for _ in range(150):
        labels = torch.randint(0, 100, (128,))
        optimizer.zero_grad()
        head(net(means[labels] + 0.3 * torch.randn(128, 32)), labels).backward()
        optimizer.step()
    labels = torch.arange(100).repeat(4)
    ranks = head.target_ranks(net(means[labels] + 0.3 * torch.randn(400, 32)), labels).rank
    return (ranks == 0).float().mean().item()


# --- the authors' code, written again ---------------------------------------------------------------------------------


def magface_easy(cosine: Tensor, norms: Tensor) -> Tensor:
    margin = 0.45 + (0.8 - 0.45) / (110 - 10) * (norms.clamp(10, 110) - 10)
    with_margin = cosine * margin.cos() - (1 - cosine**2).sqrt() * margin.sin()
    return 64 * torch.where(cosine > 0, with_margin, cosine)


def mv_easy(cosine: Tensor, norms: Tensor) -> Tensor:
    return 32 * torch.where(cosine > 0, cosine - 0.35, cosine)


def mv_arc_easy(cosine: Tensor, norms: Tensor) -> Tensor:
    with_margin = cosine * math.cos(0.5) - (1 - cosine**2).sqrt() * math.sin(0.5)
    return 32 * torch.where(cosine > 0, with_margin, cosine)


def uniface_clamped(cosine: Tensor, norms: Tensor) -> Tensor:
    return (64 * (cosine - 0.4) - math.log(10 * 1000)).clamp(-64, 64)


def sphereface2_detached(cosine: Tensor, norms: Tensor) -> Tensor:
    with torch.no_grad():
        delta = 2 * ((cosine + 1) / 2).pow(3.0) - 1 - 0.4 - cosine
    return 40 * (cosine + delta) + L.SphereFace2().initial_parameters(1000)["bias"].double()


@pytest.mark.parametrize(
    ("loss", "authors"),
    [
        (L.MagFace(easy_margin=True), magface_easy),
        (L.MVSoftmax(easy_margin=True), mv_easy),
        (L.MVSoftmax(easy_margin=True, margin_type="angular", margin=0.5), mv_arc_easy),
        (L.UniFace(clamp_logits=True), uniface_clamped),
        (L.SphereFace2(margin_grad="straight_through"), sphereface2_detached),
    ],
    ids=["MagFace", "MV-AM", "MV-Arc", "UniFace", "SphereFace2"],
)
def test_options_are_the_authors_code(loss: L.Loss, authors: Callable[[Tensor, Tensor], Tensor]) -> None:
    theta = torch.linspace(0.01, 3.1, 300, dtype=torch.float64)
    values, slopes = target_logits(loss, theta, norm=40.0)
    cosine = theta.cos().requires_grad_()
    expected = authors(cosine, torch.full_like(cosine, 40.0))
    torch.testing.assert_close(values, expected.detach(), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(slopes, torch.autograd.grad(expected.sum(), cosine)[0], rtol=1e-5, atol=1e-4)


def test_negatives_of_the_authors_code() -> None:
    cosine = torch.linspace(-0.999, 0.999, 50, dtype=torch.float64).view(1, -1).requires_grad_()
    rows = L.BatchInfo(
        torch.zeros(1).long(), torch.ones(1), torch.tensor([0.5]).double(), 0, torch.tensor(0), torch.zeros(1).long()
    )

    clamped = L.UniFace(clamp_logits=True)
    logits = clamped.negative_logits(cosine, rows, clamped.initial_parameters(1000))
    torch.testing.assert_close(logits, (64 * cosine - math.log(10_000)).clamp(-64, 64), rtol=1e-6, atol=1e-5)

    detached = L.SphereFace2(margin_grad="straight_through")
    logits = detached.negative_logits(cosine, rows, detached.initial_parameters(1000))
    assert (torch.autograd.grad(logits.sum(), cosine)[0] == 40.0).all()

    hard = L.MVSoftmax().negative_logits(cosine, rows, {})  # their t = 0.2
    torch.testing.assert_close(hard, 32 * torch.where(cosine > 0.15, 1.2 * cosine + 0.2, cosine))


# --- how centers begin ------------------------------------------------------------------------------------------------


def lengths(**options: Any) -> Tensor:
    head = PartialFC(embedding_dim=128, num_classes=400, **options).to("cpu")
    return head.weight.detach().view(-1, 128).norm(dim=1)


@pytest.mark.parametrize("loss", [L.AdaFace(), L.MagFace(), L.MVSoftmax(), L.MarginWarmup(loss=L.MagFace())], ids=str)
def test_unit_centers_where_the_authors_have_them(loss: L.Loss) -> None:
    torch.testing.assert_close(lengths(loss=loss), torch.ones(400))


def test_every_start_by_name() -> None:
    assert lengths(loss=L.ArcFace()).mean() == pytest.approx(0.01 * 128**0.5, rel=0.02)
    assert lengths(loss=L.UniFace()).mean() == pytest.approx(1.0, rel=0.02)
    assert lengths(loss=L.ArcFace(), init="xavier").mean() == pytest.approx((2 * 128 / 528) ** 0.5, rel=0.02)
    assert lengths(loss=L.ArcFace(), init="kaiming").mean() == pytest.approx(1.0, rel=0.02)
    assert lengths(loss=L.AdaFace(), init="normal").mean() == pytest.approx(0.01 * 128**0.5, rel=0.02)
    assert lengths(loss=L.AdaFace(), init_std=0.02).mean() == pytest.approx(0.02 * 128**0.5, rel=0.02)
    torch.testing.assert_close(lengths(loss=L.SubCenterArcFace(), init="unit"), torch.ones(1200))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "ones"}, "init must be one of 'normal', 'unit'"),
        ({"init_std": 0.0}, "init_std=0.0 must be above 0"),
        ({"init": "unit", "init_std": 0.1}, "init_std=0.1 has no effect with init='unit'"),
    ],
)
def test_wrong_starts_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PartialFC(embedding_dim=4, num_classes=4, loss="arcface", **options)


@pytest.mark.parametrize(
    ("name", "word", "options"),
    [
        *[(name, "margin", {}) for name in ("ArcFace", "SubCenterArcFace", "VPL", "CurricularFace", "ElasticFace")],
        ("MVSoftmax", "margin", {"margin_type": "angular"}),
        ("MagFace", "upper_margin", {}),
        ("CombinedMargin", "m2", {}),
        ("CombinedMargin", "m2", {"m1": 0.8}),
    ],
)
def test_an_angle_that_turns_samples_away_is_refused(name: str, word: str, options: dict[str, Any]) -> None:
    """From the right angle on, at which samples start; degrees, as others have them, are recognised."""
    most = math.pi * (1.0 - options.get("m1", 1.0) / 2.0)
    for value in (most, most + 0.2, 3.0):
        with pytest.raises(ValueError, match=f"{word} is an angle in radians, below {most:.4g}"):
            getattr(L, name)(**options, **{word: value})
    with pytest.raises(ValueError, match=r"28\.6 degrees are 0\.499"):
        L.loss_from_config({"name": "MarginWarmup", "loss": {"name": name, **options, word: 28.6}})
    below = getattr(L, name)(**options, **{word: most - 0.03})
    values, _ = target_logits(below, torch.linspace(0.0, math.pi / 2, 100, dtype=torch.float64), 120.0)
    assert (values.diff() <= 1e-5 * below.scale).all()
    assert L.MVSoftmax(margin=3.0).margin == 3.0  # an offset of the cosine, not an angle


def test_a_factor_below_one_is_allowed() -> None:
    assert L.CombinedMargin(m1=0.9, m2=0.4, m3=0.15).m1 == 0.9
    with pytest.raises(ValueError, match="m1 must lie in"):
        L.CombinedMargin(m1=0.0)
