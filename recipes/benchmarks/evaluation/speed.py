"""Times the counting of pairs against scikit-learn and the straightforward loops, side by side in one process.

    python recipes/benchmarks/evaluation/speed.py kfold                       # 6,000 and 1,000,000 pairs
    python recipes/benchmarks/evaluation/speed.py all-pairs --images 200000   # 2 x 10^10 pairs, in bounded memory

Every contestant gets the same distances. Times are the best of several runs; the double loop over 1,000,000 pairs runs
once.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.metrics import roc_curve
from sklearn.model_selection import KFold

from lightning_pfc.evaluation import all_pairs_tar
from lightning_pfc.metrics.functional import kfold_accuracy, tar_at_far


def double_loop(distances: np.ndarray, same: np.ndarray) -> float:
    """The definition: every fold, every threshold, count."""
    thresholds, accuracy = np.arange(0, 4, 0.01), []
    for train, test in KFold(10, shuffle=False).split(distances):
        scores = [np.mean((distances[train] < t) == same[train]) for t in thresholds]
        best = thresholds[int(np.argmax(scores))]
        accuracy.append(np.mean((distances[test] < best) == same[test]))
    return float(np.mean(accuracy))


def by_roc_curve(distances: np.ndarray, same: np.ndarray) -> float:
    """scikit-learn's curve on the nine folds, its best threshold on the tenth (so: exact thresholds, not a grid)."""
    accuracy = []
    for train, test in KFold(10, shuffle=False).split(distances):
        fpr, tpr, thresholds = roc_curve(same[train], -distances[train], drop_intermediate=False)
        genuine = same[train].sum()
        best = thresholds[int(np.argmax(tpr * genuine - fpr * (len(train) - genuine)))]
        accuracy.append(np.mean((-distances[test] >= best) == same[test]))
    return float(np.mean(accuracy))


def best_of(repeats: int, call: Callable[[], object]) -> tuple[float, object]:
    times, value = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        value = call()
        times.append(time.perf_counter() - start)
    return min(times), value


def kfold() -> None:
    print(f"{'pairs':>9}  {'what':42} {'seconds':>10} {'against loop':>13}  result")
    for pairs in (6_000, 1_000_000):
        rng = np.random.default_rng(0)
        same = rng.random(pairs) < 0.5
        distances = np.clip(np.where(same, rng.normal(0.8, 0.3, pairs), rng.normal(1.9, 0.25, pairs)), 0, 4)
        d, s = torch.from_numpy(distances), torch.from_numpy(same)
        few, many = (1, 3) if pairs > 10_000 else (3, 20)
        loop, expected = best_of(few, lambda: double_loop(distances, same))  # noqa: B023
        contestants: list[tuple[str, int, Callable[[], object]]] = [
            ("kfold_accuracy, grid (the protocol)", many, lambda: kfold_accuracy(d, s).mean),  # noqa: B023
            ("kfold_accuracy, exact thresholds", many, lambda: kfold_accuracy(d, s, thresholds="exact").mean),  # noqa: B023
            ("scikit-learn roc_curve per fold (exact)", few, lambda: by_roc_curve(distances, same)),  # noqa: B023
            ("scikit-learn roc_curve once, all pairs", many, lambda: len(roc_curve(same, -distances)[0])),  # noqa: B023
            ("tar_at_far once, all pairs", many, lambda: tar_at_far(-d, s, 1e-3).tar),  # noqa: B023
        ]
        print(f"{pairs:>9}  {'double loop over folds and thresholds':42} {loop:>10.4f} {1:>12}x  {expected:.6f}")
        for name, repeats, call in contestants:
            seconds, value = best_of(repeats, call)
            print(f"{pairs:>9}  {name:42} {seconds:>10.4f} {loop / seconds:>12.1f}x  {value:.6f}")


def all_pairs(images: int, width: int, block: int) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) // 10
    embeddings = torch.randn(int(labels.max()) + 1, width, generator=generator)[labels]
    embeddings += 1.0 * torch.randn(images, width, generator=generator)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    result = all_pairs_tar(embeddings, labels, (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8), block=block)
    seconds = time.perf_counter() - start
    pairs = result.num_genuine + result.num_impostor
    print(
        f"{images:,} embeddings of width {width}, {torch.get_num_threads()} threads: {pairs:,} pairs in {seconds:.1f} s"
    )
    print(f"{pairs / seconds:.3g} pairs/s; all pairs were gone through {result.passes} time(s)")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = embeddings.numel() * 4 / 2**20
    print(f"memory: {before:.0f} MiB before, {after:.0f} MiB at most; the embeddings are {size:.0f} MiB")
    for point in result.points:
        print(f"  FAR {point.wanted_far:.0e}: TAR {point.tar:.6f}, {point.false_accepts:,} false accepts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kfold", "all-pairs"])
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--block", type=int, default=2048)
    options = parser.parse_args()
    if options.what == "kfold":
        kfold()
    else:
        all_pairs(options.images, options.width, options.block)


if __name__ == "__main__":
    main()
