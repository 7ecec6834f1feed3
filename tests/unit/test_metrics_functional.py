"""Counting against the definitions, written out as loops, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.interpolate import interp1d
from sklearn import metrics as sk
from sklearn.model_selection import KFold
from sklearn.preprocessing import normalize

from lightning_pfc.metrics.functional import (
    area_under_roc,
    cosine_from_squared_distance,
    equal_error_rate,
    fold_of_pair,
    grid_thresholds,
    kfold_accuracy,
    kfold_tar_at_far,
    pair_squared_distances,
    roc_curve,
    tar_at_far,
)


def scored(num: int, seed: int = 0, digits: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared distances of both kinds of pairs that overlap; rounded to force ties."""
    rng = np.random.default_rng(seed)
    same = rng.random(num) < 0.5
    distances = np.clip(np.where(same, rng.normal(1.0, 0.45, num), rng.normal(1.9, 0.35, num)), 0, 4)
    if digits is not None:
        distances = distances.round(digits)
    return torch.from_numpy(distances), torch.from_numpy(same)


def loop_accuracy(distances: np.ndarray, same: np.ndarray, folds: int) -> tuple[list[float], list[float]]:
    """The definition: for each fold, for each threshold, count."""
    thresholds = np.arange(0, 4, 0.01)
    accuracy, chosen = [], []
    for train, test in KFold(folds, shuffle=False).split(distances):
        scores = [np.mean((distances[train] < t) == same[train]) for t in thresholds]
        best = int(np.argmax(scores))
        chosen.append(thresholds[best])
        accuracy.append(np.mean((distances[test] < thresholds[best]) == same[test]))
    return accuracy, chosen


@pytest.mark.parametrize(("num", "folds", "digits"), [(600, 10, None), (607, 10, 2), (23, 10, 1), (50, 3, 1)])
def test_kfold_is_the_double_loop_to_the_bit(num: int, folds: int, digits: int | None) -> None:
    distances, same = scored(num, seed=num, digits=digits)
    accuracy, chosen = loop_accuracy(distances.numpy(), same.numpy(), folds)
    result = kfold_accuracy(distances, same, num_folds=folds)
    assert result.fold_threshold.tolist() == chosen
    assert result.fold_accuracy.tolist() == accuracy
    assert result.mean == pytest.approx(np.mean(accuracy), abs=1e-15)
    assert result.std == pytest.approx(np.std(accuracy), abs=1e-15)


def test_thresholds_and_folds_are_those_of_the_protocol() -> None:
    assert np.array_equal(grid_thresholds().numpy(), np.arange(0, 4, 0.01))
    assert np.array_equal(grid_thresholds(0.001).numpy(), np.arange(0, 4, 0.001))
    for num in (10, 19, 6000, 6007):
        expected = np.empty(num, int)
        for k, (_, test) in enumerate(KFold(10, shuffle=False).split(np.zeros(num))):
            expected[test] = k
        assert np.array_equal(fold_of_pair(num).numpy(), expected)


def test_folds_may_be_given_and_pairs_left_out() -> None:
    distances, same = scored(300, seed=2)
    fold = torch.randint(-1, 3, (300,), generator=torch.Generator().manual_seed(0))
    order = fold.argsort(stable=True)[int((fold < 0).sum()) :]  # the same folds, made contiguous
    sizes = torch.bincount(fold[order])
    accuracy = []
    for k in range(3):
        train, test = order[fold[order] != k], order[fold[order] == k]
        grid = np.arange(0, 4, 0.01)
        best = np.argmax([np.mean(((distances[train] < t) == same[train]).numpy()) for t in grid])
        accuracy.append(np.mean(((distances[test] < grid[best]) == same[test]).numpy()))
    result = kfold_accuracy(distances, same, num_folds=3, fold=fold)
    assert result.fold_accuracy.tolist() == accuracy
    assert len(sizes) == 3
    with pytest.raises(ValueError, match="num_folds=4"):
        kfold_accuracy(distances, same, num_folds=4, fold=fold)
    with pytest.raises(ValueError, match="fold has shape"):
        kfold_accuracy(distances, same, num_folds=3, fold=fold[1:])


def test_exact_thresholds_see_what_the_grid_cannot() -> None:
    # All the difference lies between two thresholds of the grid.
    same = torch.arange(200) % 2 == 0
    distances = torch.where(same, 1.2312, 1.2387).double()
    assert kfold_accuracy(distances, same).mean == 0.5
    exact = kfold_accuracy(distances, same, thresholds="exact")
    assert exact.mean == 1.0
    assert exact.fold_threshold.tolist() == [pytest.approx((1.2312 + 1.2387) / 2)] * 10


@pytest.mark.parametrize("digits", [None, 1])
def test_exact_thresholds_are_the_loop_over_all_cuts(digits: int | None) -> None:
    distances, same = scored(120, seed=3, digits=digits)
    d, s, fold = distances.numpy(), same.numpy(), fold_of_pair(120).numpy()
    accuracy = []
    for k in range(10):
        train, edges = fold != k, np.unique(d[fold != k])
        cuts = np.concatenate([[edges[0]], (edges[1:] + edges[:-1]) / 2, [edges[-1] + 1e-9]])
        best = cuts[int(np.argmax([np.mean((d[train] < t) == s[train]) for t in cuts]))]
        accuracy.append(np.mean((d[~train] < best) == s[~train]))
    assert kfold_accuracy(distances, same, thresholds="exact").fold_accuracy.tolist() == accuracy


@pytest.mark.parametrize("far", [0.5, 0.1, 0.01, 0.003])
def test_kfold_tar_is_the_loop_with_interpolation(far: float) -> None:
    distances, same = scored(3000, seed=5)
    d, s, grid = distances.numpy(), same.numpy(), np.arange(0, 4, 0.001)
    tars, fars = [], []
    for train, test in KFold(10, shuffle=False).split(d):
        impostor = np.sort(d[train][~s[train]])
        rates = np.searchsorted(impostor, grid, side="left") / len(impostor)  # distances below each threshold
        threshold = float(interp1d(rates, grid, kind="linear")(far)) if rates.max() >= far else 0.0
        tars.append(np.mean(d[test][s[test]] < threshold))
        fars.append(np.mean(d[test][~s[test]] < threshold))
    result = kfold_tar_at_far(distances, same, far)
    assert result.tar == pytest.approx(np.mean(tars), abs=1e-12)
    assert result.std == pytest.approx(np.std(tars), abs=1e-12)
    assert result.far == pytest.approx(np.mean(fars), abs=1e-12)


@pytest.mark.parametrize(("count", "far"), [(4000, 1e-3), (4000, 1e-2), (400, 0.1), (80, 0.5), (80, 1.0)])
def test_a_rate_that_whole_pairs_reach_takes_the_end_of_its_plateau(count: int, far: float) -> None:
    generator = torch.Generator().manual_seed(1)
    same = torch.arange(count) % 4 == 0  # every fold has the same number of impostors: far x impostors is whole
    distances = torch.rand(count, generator=generator, dtype=torch.float64) * torch.where(same, 0.4, 1.0) * 4
    d, s, grid = distances.numpy(), same.numpy(), np.arange(0, 4, 0.001)
    tars, fars = [], []
    for train, test in KFold(10, shuffle=False).split(d):
        impostor = np.sort(d[train][~s[train]])
        rates = np.searchsorted(impostor, grid, side="left") / len(impostor)
        threshold = np.interp(far, rates, grid)
        tars.append(np.mean(d[test][s[test]] < threshold))
        fars.append(np.mean(d[test][~s[test]] < threshold))
    result = kfold_tar_at_far(distances, same, far)
    assert (result.tar, result.far) == (  # type: ignore[comparison-overlap]
        pytest.approx(np.mean(tars), abs=1e-12),
        pytest.approx(np.mean(fars), abs=1e-12),
    )


def test_kfold_tar_that_no_threshold_reaches_accepts_nothing() -> None:
    distances = torch.full((40,), 4.0, dtype=torch.float64)  # beyond the last threshold
    distances[::2] = 0.5
    same = torch.arange(40) % 2 == 0
    result = kfold_tar_at_far(distances, same, 0.1)
    assert (result.tar, result.far) == (0.0, 0.0)


@pytest.mark.parametrize("digits", [None, 2, 0])
def test_roc_auc_and_eer_against_scikit_learn(digits: int | None) -> None:
    distances, same = scored(2000, seed=7, digits=digits)
    scores = -distances
    far, tar, threshold = sk.roc_curve(same.numpy(), scores.numpy(), drop_intermediate=False)
    curve = roc_curve(scores, same)
    np.testing.assert_allclose(curve.far.numpy(), far, atol=1e-15)
    np.testing.assert_allclose(curve.tar.numpy(), tar, atol=1e-15)
    assert np.array_equal(curve.threshold.numpy(), threshold)
    assert area_under_roc(scores, same) == pytest.approx(sk.roc_auc_score(same.numpy(), scores.numpy()), abs=1e-13)
    grid = np.linspace(0, 1, 2_000_001)
    crossing = grid[np.argmin(np.abs(grid - (1 - np.interp(grid, far, tar))))]
    assert equal_error_rate(scores, same) == pytest.approx(crossing, abs=2e-6)


@pytest.mark.parametrize("digits", [None, 1, 0])
@pytest.mark.parametrize("far", [1.0, 0.3, 0.1, 1e-2, 1e-3, 1e-5])
def test_tar_at_far_is_the_best_point_of_the_curve_that_is_allowed(far: float, digits: int | None) -> None:
    distances, same = scored(4001, seed=11, digits=digits)
    sk_far, sk_tar, _ = sk.roc_curve(same.numpy(), -distances.numpy(), drop_intermediate=False)
    point = tar_at_far(-distances, same, far)
    allowed = sk_far <= far
    assert point.tar == pytest.approx(sk_tar[allowed].max(), abs=1e-15)
    assert point.far == pytest.approx(sk_far[allowed].max(), abs=1e-15)
    assert point.far <= far
    accepted = -distances > point.threshold
    assert int((accepted & ~same).sum()) == point.false_accepts
    assert (accepted & same).sum() / same.sum() == pytest.approx(point.tar)


def test_the_number_of_allowed_impostors_does_not_suffer_from_rounding() -> None:
    # 0.07 * 100 is 7.000000000000001 and 0.29 * 100 is 28.999999999999996 in floating point.
    same = torch.arange(200) < 100
    scores = torch.arange(200, dtype=torch.float64)
    assert tar_at_far(scores, same, 0.07).false_accepts == 7
    assert tar_at_far(scores, same, 0.29).false_accepts == 29


def test_distances_are_those_of_scikit_learns_normalised_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(40, 16, generator=generator)
    embeddings[3] = 0
    first, second = torch.randint(0, 40, (2, 300), generator=generator)
    rows = normalize(embeddings.double().numpy())
    expected = np.sum(np.square(rows[first] - rows[second]), 1)
    for chunk in (7, 65_536):
        got = pair_squared_distances(embeddings, first, second, chunk=chunk)
        np.testing.assert_allclose(got.numpy(), expected, atol=2e-15)
    cosine = (rows[first] * rows[second]).sum(1)
    whole = (first != 3) & (second != 3)
    np.testing.assert_allclose(cosine_from_squared_distance(got)[whole].numpy(), cosine[whole.numpy()], atol=2e-15)


@pytest.mark.parametrize("function", [kfold_accuracy, kfold_tar_at_far, roc_curve, area_under_roc, equal_error_rate])
def test_bad_input_is_named(function: object) -> None:
    call = function
    distances, same = scored(40)
    with pytest.raises(ValueError, match="NaN in 1 of 40"):
        call(torch.where(torch.arange(40) == 2, torch.nan, distances), same)  # type: ignore[operator]
    with pytest.raises(ValueError, match="has 40 entries but same has 39"):
        call(distances, same[1:])  # type: ignore[operator]
    with pytest.raises(ValueError, match="no genuine"):
        call(distances, torch.zeros_like(same))  # type: ignore[operator]
    with pytest.raises(ValueError, match="no impostor"):
        call(distances, torch.ones_like(same))  # type: ignore[operator]
    with pytest.raises(ValueError, match="bool or integers"):
        call(distances, same.double())  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"shape \(P,\)"):
        call(distances[None], same)  # type: ignore[operator]
    with pytest.raises(TypeError, match=r"torch\.Tensor"):
        call(distances.tolist(), same)  # type: ignore[operator]


def test_bad_settings_are_named() -> None:
    distances, same = scored(40)
    with pytest.raises(ValueError, match=r"far=0.0.*\(0, 1\]"):
        tar_at_far(-distances, same, 0.0)
    with pytest.raises(ValueError, match="num_folds=50 is more than the 40 pairs"):
        kfold_accuracy(distances, same, num_folds=50)
    with pytest.raises(ValueError, match="num_folds=1 must be at least 2"):
        kfold_accuracy(distances, same, num_folds=1)
    with pytest.raises(ValueError, match="thresholds='fine' is unknown"):
        kfold_accuracy(distances, same, thresholds="fine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"second holds indices in \[0, 3\] but embeddings has 3 rows"):
        pair_squared_distances(torch.eye(3), torch.tensor([0, 1]), torch.tensor([0, 3]))
