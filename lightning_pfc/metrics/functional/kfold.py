"""The k-fold verification protocol of LFW as InsightFace fixed it, by counting instead of looping.

Every number of the protocol is a count of pairs on one side of a threshold. One histogram of distances per fold
holds all of them at once: a cumulative sum gives the counts at every threshold, the total less one fold those of the
other folds. The work is ``O(P log T)`` for P pairs and T thresholds, where the loop over folds and thresholds that
the definition describes is ``O(P * T * folds)``.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_pfc.metrics.functional.checks import check_rate, check_scored_pairs

_IN_CACHE = 1 << 16  # pairs that are counted at a time


class KFoldAccuracy(NamedTuple):
    """Accuracy over folds.

    Attributes:
        mean: Mean over folds, in [0, 1].
        std: Population standard deviation over folds (as ``numpy.std``).
        fold_accuracy: Accuracy of each fold, shape (folds,), float64.
        fold_threshold: Threshold on the squared distance used for each fold, shape (folds,), float64.
    """

    mean: float
    std: float
    fold_accuracy: Tensor
    fold_threshold: Tensor


class KFoldTAR(NamedTuple):
    """True accept rate over folds at a false accept rate fixed on the other folds.

    Attributes:
        tar: Mean true accept rate over folds.
        std: Population standard deviation of it.
        far: Mean false accept rate that the test folds really had.
        fold_threshold: Threshold on the squared distance used for each fold, shape (folds,), float64.
    """

    tar: float
    std: float
    far: float
    fold_threshold: Tensor


def grid_thresholds(step: float = 0.01, stop: float = 4.0) -> Tensor:
    """Thresholds ``0, step, 2 step, ...`` below ``stop``: the values of ``numpy.arange(0, stop, step)``, float64.

    Raises:
        ValueError: When ``step`` or ``stop`` is not positive.
    """
    if step <= 0 or stop <= 0:
        raise ValueError(f"step={step} and stop={stop} must be positive; the protocol uses step=0.01, stop=4")
    return torch.arange(math.ceil(stop / step), dtype=torch.float64) * step


def fold_of_pair(num_pairs: int, num_folds: int = 10) -> Tensor:
    """Fold of each pair in file order: contiguous, the first ``num_pairs % num_folds`` folds one pair longer.

    This is ``sklearn.model_selection.KFold(num_folds, shuffle=False)``.

    Args:
        num_pairs: Number of pairs.
        num_folds: Number of folds, at least 2.

    Returns:
        Fold number of each pair, shape (num_pairs,), int64.

    Raises:
        ValueError: With fewer than two folds, or fewer pairs than folds.
    """
    if num_folds < 2:
        raise ValueError(f"num_folds={num_folds} must be at least 2: one fold is scored by the others' threshold")
    if num_pairs < num_folds:
        raise ValueError(f"num_folds={num_folds} is more than the {num_pairs} pairs there are; use fewer folds")
    sizes = torch.full((num_folds,), num_pairs // num_folds)
    sizes[: num_pairs % num_folds] += 1
    return torch.repeat_interleave(torch.arange(num_folds), sizes)


def kfold_accuracy(
    distances: Tensor,
    same: Tensor,
    *,
    num_folds: int = 10,
    thresholds: Literal["grid", "exact"] = "grid",
    fold: Tensor | None = None,
) -> KFoldAccuracy:
    """Verification accuracy: each fold is judged by the threshold that is best on the other folds.

    A pair is called the same identity when ``distance < threshold``. With ``"grid"`` the candidates are
    ``arange(0, 4, 0.01)`` on the squared distance of unit vectors and the first of equally good ones wins: the numbers
    that the field reports. With ``"exact"`` every cut between two distances of the training folds is a candidate (the
    middle of the gap is used), which matters when pairs are many or distances lie close together.

    Args:
        distances: Squared distances of unit vectors in pair order, shape (P,).
        same: Whether a pair shows one identity, shape (P,), bool.
        num_folds: Contiguous folds in pair order.
        thresholds: Candidates, see above.
        fold: Fold of each pair, shape (P,), int64, instead of contiguous ones; pairs at -1 are left out. Every fold
            from 0 to ``num_folds - 1`` needs a pair.

    Returns:
        Mean, spread and the parts of both.

    Raises:
        ValueError: On wrong shapes, NaN, one kind of pairs only, more folds than pairs, an empty fold or an unknown
            ``thresholds``.
    """
    distances, same, fold = _folded(distances, same, fold, num_folds)
    if thresholds == "grid":
        chosen, accuracy = _best_on_grid(distances, same, fold, num_folds)
    elif thresholds == "exact":
        chosen, accuracy = _best_exact(distances, same, fold, num_folds)
    else:
        raise ValueError(f"thresholds={thresholds!r} is unknown; use 'grid' (0.01 steps, as published) or 'exact'")
    return KFoldAccuracy(float(accuracy.mean()), float(accuracy.std(correction=0)), accuracy, chosen)


def kfold_tar_at_far(
    distances: Tensor,
    same: Tensor,
    far: float = 1e-3,
    *,
    num_folds: int = 10,
    step: float = 0.001,
    fold: Tensor | None = None,
) -> KFoldTAR:
    """The "VAL @ FAR" of the InsightFace protocol: the threshold for ``far`` is set on the other folds.

    On the training folds the false accept rate is taken at thresholds in steps of ``step`` and interpolated linearly
    to find where it reaches ``far``, as ``numpy.interp`` does: where several thresholds have just that rate, the last
    is taken; where the training folds never reach it, the threshold is 0 and nothing is accepted. For the exact rate
    over all pairs at once use :func:`~lightning_pfc.metrics.functional.curves.tar_at_far`.

    Args:
        distances: Squared distances of unit vectors in pair order, shape (P,).
        same: Whether a pair shows one identity, shape (P,), bool.
        far: Wanted false accept rate, in (0, 1].
        num_folds: Contiguous folds in pair order.
        step: Grid of thresholds.
        fold: As for :func:`kfold_accuracy`.

    Returns:
        Mean rates over folds. A fold without genuine (impostor) pairs does not take part in the mean of ``tar``
        (``far``).

    Raises:
        ValueError: As :func:`kfold_accuracy`, or when ``far`` is outside (0, 1].
    """
    far = check_rate(far, "far")
    distances, same, fold = _folded(distances, same, fold, num_folds)
    grid = grid_thresholds(step).to(distances.device)
    _, impostor, total = _counts_below(distances, same, fold, num_folds, grid)
    train = impostor.sum(0, keepdim=True) - impostor
    train_total = total[:, 1].sum() - total[:, 1]
    rate = train / train_total.clamp(min=1).unsqueeze(1)
    chosen = torch.zeros(num_folds, dtype=torch.float64, device=distances.device)
    for k in range(num_folds):
        if bool(rate[k].max() < far):
            continue
        # The last threshold that does not exceed the rate: the end of a plateau at just that rate.
        high = int(torch.searchsorted(rate[k], torch.tensor(far, dtype=rate.dtype, device=rate.device), right=True))
        low = high - 1
        chosen[k] = grid[low]
        if high < len(grid):
            slope = (grid[high] - grid[low]) / (rate[k, high] - rate[k, low])
            chosen[k] += slope * (far - rate[k, low])
    accepted = distances < chosen[fold]
    tar = _rate_per_fold(accepted & same, same, fold, num_folds)
    observed = _rate_per_fold(accepted & ~same, ~same, fold, num_folds)
    return KFoldTAR(float(tar.mean()), float(tar.std(correction=0)), float(observed.mean()), chosen)


def _folded(distances: Tensor, same: Tensor, fold: Tensor | None, num_folds: int) -> tuple[Tensor, Tensor, Tensor]:
    """The checked pairs that are in a fold, and the fold of each; contiguous ones where none are given."""
    if fold is None:
        distances, same = check_scored_pairs(distances, same, "distances")
        return distances, same, fold_of_pair(len(distances), num_folds).to(distances.device)
    if fold.shape != distances.shape:
        raise ValueError(f"fold has shape {tuple(fold.shape)} but distances {tuple(distances.shape)}; they must agree")
    fold = fold.to(distances.device)
    used = fold >= 0
    distances, same = check_scored_pairs(distances[used], same.to(distances.device)[used], "distances")
    fold = fold[used]
    if torch.bincount(fold, minlength=num_folds).ne(0).tolist() != [True] * num_folds or num_folds < 2:
        raise ValueError(
            f"fold holds pairs of the folds {sorted(set(fold.tolist()))}; it must name each of 0 to {num_folds - 1} "
            f"(num_folds={num_folds}, at least 2)"
        )
    return distances, same, fold


def _counts_below(
    distances: Tensor, same: Tensor, fold: Tensor, num_folds: int, grid: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Genuine and impostor pairs with ``distance < grid[t]``, each (folds, T) int64, and all of both, (folds, 2)."""
    num_bins = len(grid) + 1
    counts = torch.zeros(num_folds * 2 * num_bins, dtype=torch.int64, device=distances.device)
    for start in range(0, len(distances), _IN_CACHE):
        part = slice(start, start + _IN_CACHE)
        # distance < grid[t] holds from the first t whose threshold exceeds it on.
        bins = torch.searchsorted(grid, distances[part], right=True)
        counts += torch.bincount((fold[part] * 2 + same[part]) * num_bins + bins, minlength=len(counts))
    counts = counts.view(num_folds, 2, num_bins)
    below = counts.cumsum(-1)[..., :-1]
    return below[:, 1], below[:, 0], counts.sum(-1).flip(1)


def _best_on_grid(distances: Tensor, same: Tensor, fold: Tensor, num_folds: int) -> tuple[Tensor, Tensor]:
    grid = grid_thresholds().to(distances.device)
    genuine, impostor, total = _counts_below(distances, same, fold, num_folds, grid)
    correct = genuine + total[:, 1:] - impostor  # (folds, T)
    train = correct.sum(0, keepdim=True) - correct
    # Counts of one fold share their denominator, so the best count is the best accuracy. The first maximum wins.
    best = (train == train.amax(1, keepdim=True)).int().argmax(1)
    return grid[best], correct.gather(1, best.unsqueeze(1)).squeeze(1).double() / total.sum(1)


def _best_exact(distances: Tensor, same: Tensor, fold: Tensor, num_folds: int) -> tuple[Tensor, Tensor]:
    order = distances.argsort(stable=True)
    distances, same, fold = distances[order], same[order], fold[order]
    chosen = torch.empty(num_folds, dtype=torch.float64, device=distances.device)
    accuracy = torch.empty_like(chosen)
    for k in range(num_folds):
        test = fold == k
        d, s = distances[~test], same[~test]
        # gain[i]: correct pairs, less a constant, when the first i of the sorted training pairs are accepted.
        gain = torch.cat([s.new_zeros(1, dtype=torch.int64), (s.long() * 2 - 1).cumsum(0)])
        cut_here = torch.cat([s.new_ones(1), d[1:] > d[:-1], s.new_ones(1)])
        gain[~cut_here] = gain.min() - 1
        best = int((gain == gain.max()).int().argmax())
        edges = torch.cat([d[:1], d, torch.nextafter(d[-1:], d.new_tensor(torch.inf))])
        chosen[k] = (edges[best] + edges[best + 1]) / 2
        if not bool(chosen[k] > edges[best]) and best > 0:  # neighbours without a number between them
            chosen[k] = edges[best + 1]
        accuracy[k] = ((distances[test] < chosen[k]) == same[test]).double().mean()
    return chosen, accuracy


def _rate_per_fold(hits: Tensor, population: Tensor, fold: Tensor, num_folds: int) -> Tensor:
    """Share of hits among each fold's population; folds without population are left out."""
    total = torch.bincount(fold[population], minlength=num_folds)
    count = torch.bincount(fold[hits], minlength=num_folds)
    return count[total > 0].double() / total[total > 0]
