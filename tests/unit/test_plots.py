"""Pictures are written whole, are not blank, and show what they were given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_pfc import report
from lightning_pfc.metrics.functional import roc_curve
from lightning_pfc.plots import (
    Gap,
    plot_det,
    plot_gap,
    plot_hardest_pairs,
    plot_learning_rate,
    plot_loss,
    plot_roc,
    plot_score_histogram,
)
from lightning_pfc.plots.pairs import to_pixels
from lightning_pfc.report import gaps_of


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def has_colour(picture: np.ndarray, colour: str, at_least: int = 50) -> bool:
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(picture - wanted).max(-1) <= 2).sum()) >= at_least


def scores() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    same = torch.arange(4000) % 4 == 0
    return torch.randn(4000, generator=generator) * 0.15 + same * 0.6, same


def test_loss_curve(tmp_path: Path) -> None:
    losses = torch.linspace(5, 1, 300)
    losses[10] = torch.inf
    path = plot_loss(
        range(300), losses, tmp_path / "new" / "loss.png", validation={"test/accuracy": ([0, 299], [0.5, 0.9])}
    )
    picture = pixels(path)
    assert has_colour(picture, "#0072B2")
    assert has_colour(picture, "#D55E00")
    assert sorted(p.name for p in path.parent.iterdir()) == ["loss.png"]
    plot_loss([0], [1.0], tmp_path / "one.png")
    plot_loss([0, 1], [float("nan"), float("inf")], tmp_path / "none.png")


def test_learning_rates_that_are_equal_share_a_line(tmp_path: Path) -> None:
    x = np.arange(50)
    picture = pixels(plot_learning_rate(x, {"backbone": x, "norm": x, "head": 2 * x}, tmp_path / "lr.png"))
    assert has_colour(picture, "#0072B2")
    assert has_colour(picture, "#D55E00")
    assert not has_colour(picture, "#009E73")


def test_roc_and_det(tmp_path: Path) -> None:
    curve = roc_curve(*scores())
    for plot in (plot_roc, plot_det):
        assert has_colour(pixels(plot({"a": curve}, tmp_path / "one.png")), "#0072B2")
        assert has_colour(pixels(plot({"a": curve, "b": curve}, tmp_path / "two.png")), "#D55E00")
    perfect = roc_curve(torch.tensor([1.0, 0.0]), torch.tensor([True, False]))
    plot_roc({"perfect": perfect}, tmp_path / "perfect.png")
    plot_det({"perfect": perfect}, tmp_path / "perfect.png")


def test_histogram(tmp_path: Path) -> None:
    values, same = scores()
    path = plot_score_histogram(values, same, tmp_path / "h.png", thresholds={"FAR 1e-3": 0.4, "none": float("-inf")})
    picture = pixels(path)
    assert has_colour(picture, "#0072B2")
    assert has_colour(picture, "#D55E00")
    plot_score_histogram(torch.ones(4), torch.tensor([True, True, False, False]), tmp_path / "constant.png")


def test_hardest_pairs_shows_the_hardest(tmp_path: Path) -> None:
    # Every image has a colour of its own: the sheet must hold those of the hardest pairs and no other.
    images = [Image.new("RGB", (20, 30), (5 * i, 200, 255 - 5 * i)) for i in range(40)]
    first, second = torch.arange(0, 40, 2), torch.arange(1, 40, 2)
    same = torch.arange(20) < 10
    values = torch.linspace(0, 1, 20).roll(10)  # genuine 0.53 .. 1, impostor 0 .. 0.47
    asked: list[int] = []

    def image(row: int) -> Image.Image:
        asked.append(row)
        return images[row]

    path = plot_hardest_pairs(
        image, first, second, values, same, tmp_path / "p.png", count=2, columns=2, threshold=0.45
    )
    assert sorted(asked) == [0, 1, 2, 3, 36, 37, 38, 39]
    picture = pixels(path)
    for row in asked:
        assert has_colour(picture, f"#{5 * row:02x}{200:02x}{255 - 5 * row:02x}")
    plot_hardest_pairs(images, first, second, values, same, tmp_path / "n.png", names=lambda row: f"image {row}")
    only = torch.ones(20, dtype=torch.bool)
    plot_hardest_pairs(images, first, second, values, only, tmp_path / "only.png", count=5)


def test_images_of_any_layout_become_pixels() -> None:
    gray = torch.linspace(-1, 1, 12).view(1, 3, 4)
    expected = np.rint((gray[0].numpy().astype(np.float64) + 1) * 127.5).astype(np.uint8)
    assert np.array_equal(to_pixels(gray), np.stack([expected] * 3, -1))
    assert np.array_equal(to_pixels(expected), np.stack([expected] * 3, -1))
    colour = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    assert np.array_equal(to_pixels(colour), colour)
    assert np.array_equal(to_pixels(torch.from_numpy(colour.transpose(2, 0, 1).copy())), colour)
    with pytest.raises(ValueError, match=r"got \(2, 4, 4\)"):
        to_pixels(np.zeros((2, 4, 4), np.uint8))


def test_bad_input_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="steps has 2 entries but losses has 3"):
        plot_loss([0, 1], [1.0, 2.0, 3.0], tmp_path / "x.png")
    with pytest.raises(ValueError, match="rates is empty"):
        plot_learning_rate([0], {}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="curves is empty"):
        plot_roc({}, tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"must end in \.png"):
        plot_loss([0], [1.0], tmp_path / "x.pdf")
    with pytest.raises(ValueError, match="no finite value"):
        plot_score_histogram(torch.tensor([torch.nan]), torch.tensor([True]), tmp_path / "x.png")
    empty = torch.zeros(0)
    with pytest.raises(ValueError, match="scores is empty"):
        plot_hardest_pairs([], empty, empty, empty, empty, tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_the_gap_between_trained_and_held_out(tmp_path: Path) -> None:
    metrics = {"val/rank-1": 0.4, "val/rank-1/trained": 0.95, "test/rank-1/trained": 0.9, "val/auc": 0.8}
    gaps = gaps_of(metrics, {"val/rank-1": [0.3, 0.5]})
    assert gaps == {"val/rank-1": Gap(0.95, 0.4, (0.3, 0.5))}
    assert plot_gap(gaps, tmp_path / "gap.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="gaps is empty"):
        plot_gap({}, tmp_path / "none.png")
    assert gaps_of({"val/auc": 0.8}, {}) == {}


def test_a_run_draws_its_validation_beside_its_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        report, "plot_loss", lambda steps, losses, path, **more: seen.update(more, losses=losses) or path
    )
    (tmp_path / "metrics.csv").write_text(
        "step,train/loss,val/auc,val/tar@far=1e-3,test/auc\n1,5.0,,,\n2,4.0,0.6,0.1,\n4,3.0,0.7,0.2,\n4,,,,0.9\n"
    )
    written = report.draw(tmp_path, tmp_path / "metrics.csv", {}, {}, {"val/rank-1": Gap(0.9, 0.5, None)})
    assert seen["losses"] == [5.0, 4.0, 3.0]
    assert seen["validation"] == {"val/auc": ([2, 4], [0.6, 0.7])}  # one value is no curve
    assert [path.name for path in written] == ["loss.png", "gap.png"]
