"""Centers and samples of a head against the whole matrix of cosines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_pfc import PartialFC
from lightning_pfc.distributed.comm import Comm
from lightning_pfc.losses import CosFace, SubCenterArcFace
from lightning_pfc.metrics import (
    CenterDiagnostics,
    SampleDiagnostics,
    nearest_centers,
    target_and_negative_cosines,
    worst_collisions,
)
from lightning_pfc.plots import plot_counts

CLASSES, WIDTH = 37, 8


def weights(several: int = 1) -> torch.Tensor:
    """Class 5 is nothing, 11 is tiny, 20 is nearly 21, 30 is broken."""
    weight = torch.randn(CLASSES, several * WIDTH, generator=torch.Generator().manual_seed(3))
    weight[5] = 0.0
    weight[11] *= 1e-4
    weight[20] = 2.0 * weight[21] + 0.01
    weight[30] = torch.inf
    return weight


def make_head(several: int = 1, **options: Any) -> PartialFC:
    """A head with those centers, but class 33 is as it was born."""
    loss = CosFace() if several == 1 else SubCenterArcFace(centers=several)
    head = PartialFC(embedding_dim=WIDTH, num_classes=CLASSES, loss=loss, seed=1, **options)
    head.to("cpu")
    rows = head.class_range
    with torch.no_grad():
        born = head.weight.clone()
        head.weight.copy_(weights(several)[rows.start : rows.stop])
        if 33 in rows:
            head.weight[33 - rows.start] = born[33 - rows.start]
    return head


def dense(several: int = 1) -> torch.Tensor:
    """Unit centers (C, K, D); zeros where there is no direction."""
    rows = make_head(several, comm=Comm.single()).weight.detach().view(CLASSES, several, WIDTH)
    norms = rows.norm(dim=2, keepdim=True)
    return torch.where((norms > 0) & norms.isfinite(), rows / norms, 0.0)


def batch(several: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, CLASSES, (50,), generator=generator)
    labels[labels == 30] = 2
    embeddings = dense(several)[labels, 0] + 0.4 * torch.randn(50, WIDTH, generator=generator)
    return 3 * embeddings, labels


@pytest.mark.parametrize("chunk", [5, 2048])
@pytest.mark.parametrize("several", [1, 3])
def test_nearest_centers_are_those_of_the_whole_matrix(chunk: int, several: int) -> None:
    found = nearest_centers(make_head(several), chunk=chunk)
    rows = dense(several)
    cosine = torch.einsum("ikd,jld->ijkl", rows, rows).amax((2, 3))
    cosine.fill_diagonal_(-2.0)
    cosine[:, [5, 30]] = -2.0
    best, place = cosine.max(1)
    usable = torch.ones(CLASSES, dtype=torch.bool)
    usable[[5, 30]] = False
    torch.testing.assert_close(found.cosine[usable], best[usable], atol=1e-6, rtol=0)
    assert torch.equal(found.neighbour[usable], place[usable])
    assert found.cosine[[5, 30]].tolist() == [-1.0, -1.0]
    assert found.neighbour[[5, 30]].tolist() == [-1, -1]
    assert found.neighbour[[20, 21]].tolist() == [21, 20]


def test_centers_in_bfloat16_are_measured_in_float32() -> None:
    head = make_head(dtype=torch.bfloat16)
    found = nearest_centers(head, chunk=5)
    wide = make_head()
    with torch.no_grad():
        wide.weight.copy_(head.weight)
    expected = nearest_centers(wide)
    assert found.cosine.dtype == torch.float32
    torch.testing.assert_close(found.cosine, expected.cosine, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.norm, expected.norm)
    metric = CenterDiagnostics()
    metric.update(head)
    assert float(metric.compute()["untouched"]) == 1


def test_collisions_are_pairs_once_and_in_order() -> None:
    head = make_head()
    found = nearest_centers(head)
    worst = worst_collisions(head, found, 5)
    assert len(worst) == 5
    assert worst[0][:2] == (20, 21)
    assert worst[0].cosine == pytest.approx(float(found.cosine[20]))
    assert [pair.cosine for pair in worst] == sorted((pair.cosine for pair in worst), reverse=True)
    assert len({pair[:2] for pair in worst}) == 5
    assert all(pair.first < pair.second for pair in worst)


def test_center_diagnostics_count() -> None:
    metric = CenterDiagnostics(collision=0.98, dead_norm=0.001)
    metric.update(make_head())
    got = {name: float(value) for name, value in metric.compute().items()}
    found = nearest_centers(make_head())
    assert got["mics"] == pytest.approx(float(found.cosine.double().mean()))
    assert got["mics_max"] == pytest.approx(float(found.cosine.max()))
    # Dead: nothing, tiny, broken; 33 is as short as centers are born, but not below a thousandth of the others.
    assert (got["dead"], got["untouched"], got["colliding"]) == (3, 1, 2)
    finite = found.norm.isfinite()
    assert got["norm"] == pytest.approx(float(found.norm[finite].double().mean()))
    assert int(metric.cosine_histogram.sum()) == CLASSES
    assert int(metric.norm_histogram.sum()) == CLASSES - 1


@pytest.mark.parametrize("chunk", [6, 8192])
@pytest.mark.parametrize("several", [1, 3])
def test_sample_cosines_are_those_of_the_whole_matrix(chunk: int, several: int) -> None:
    embeddings, labels = batch(several)
    target, negative = target_and_negative_cosines(make_head(several), embeddings, labels, chunk=chunk)
    cosine = torch.einsum("bd,ckd->bck", torch.nn.functional.normalize(embeddings), dense(several)).amax(2)
    torch.testing.assert_close(target, cosine.gather(1, labels[:, None]).squeeze(1), atol=1e-6, rtol=0)
    others = cosine.scatter(1, labels[:, None], -2.0).amax(1)
    torch.testing.assert_close(negative, others, atol=1e-6, rtol=0)


def test_samples_are_split_into_hard_and_noise() -> None:
    embeddings, labels = batch()
    target, others = target_and_negative_cosines(make_head(), embeddings, labels)
    metric = SampleDiagnostics(noise_cosine=0.6)
    metric.update(make_head(), embeddings[:20], labels[:20])
    metric.update(make_head(), embeddings[20:], labels[20:])
    got = {name: float(value) for name, value in metric.compute().items()}
    noise = (others > target) & (others > 0.6)
    hard = (others > target) & ~noise
    assert 0 < int(noise.sum()) < 50
    assert 0 < int(hard.sum()) < 50
    expected = {
        "apcs": target.mean(),
        "amncs": others.mean(),
        "amncs_hard": others[hard].mean(),
        "amncs_noise": others[noise].mean(),
        "hard": hard.double().mean(),
        "noise": noise.double().mean(),
        "norm": embeddings.norm(dim=1).mean(),
    }
    assert got == pytest.approx({k: float(v) for k, v in expected.items()}, abs=1e-6)
    assert int(metric.target_histogram.sum()) == int(metric.negative_histogram.sum()) == 50


def test_bad_input_is_named() -> None:
    head = PartialFC(embedding_dim=WIDTH, num_classes=CLASSES, loss=CosFace())
    with pytest.raises(ValueError, match="no storage yet"):
        nearest_centers(head)
    with pytest.raises(ValueError, match="no storage yet"):
        target_and_negative_cosines(head, *batch())
    with pytest.raises(ValueError, match="chunk=0"):
        nearest_centers(make_head(), chunk=0)
    with pytest.raises(ValueError, match=r"labels \(b,\)"):
        target_and_negative_cosines(make_head(), batch()[0], batch()[1][:3])
    with pytest.raises(ValueError, match="collision=2"):
        CenterDiagnostics(collision=2)
    with pytest.raises(ValueError, match="dead_norm=1"):
        CenterDiagnostics(dead_norm=1)
    with pytest.raises(ValueError, match="noise_cosine=2"):
        SampleDiagnostics(noise_cosine=2)


def test_counts_are_drawn(tmp_path: Path) -> None:
    counts = torch.zeros(200, dtype=torch.int64)
    counts[120:140] = 5
    panels = {"cosine": {"nearest": counts, "nothing": torch.zeros(200)}, "length": {"centers": counts[:160]}}
    edges = {"cosine": (-1.0, 1.0), "length": (-4.0, 4.0)}
    path = plot_counts(panels, edges, tmp_path / "new" / "x.png", logarithmic={"length"})
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    blue = np.abs(picture - np.array([0x00, 0x72, 0xB2])).max(-1) <= 2
    half = picture.shape[1] // 2
    assert min(int(blue[:, :half].sum()), int(blue[:, half:].sum())) > 50
    with pytest.raises(ValueError, match="panels is empty"):
        plot_counts({}, {}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="'x' has no count"):
        plot_counts({"x": {"nothing": torch.zeros(4)}}, {"x": (0, 1)}, tmp_path / "x.png")
