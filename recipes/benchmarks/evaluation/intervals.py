"""How often a 95 % interval of one test set holds the value of the whole population.

    pfc-embed MODEL pictures/ rows.npz
    python recipes/benchmarks/evaluation/intervals.py rows.npz --identities 200 --sets 50

The identities with two pictures or more are the population. Test sets are drawn from it, each is judged as
``pfc-train`` and ``pfc-eval`` do, and each interval is compared with what is true of the population: TAR at FAR and
AUC over all of its pairs; rank-k, which falls as a gallery grows, as the mean over other sets of the same size. A set
that holds a large part of the population varies less than one of strangers, so let it be a tenth or less.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import trange

from lightning_pfc.evaluation.all_pairs import all_pairs_tar
from lightning_pfc.evaluation.intervals import Interval, auc_interval, ratio_interval, tar_interval
from lightning_pfc.evaluation.one_shot import one_shot
from lightning_pfc.metrics.functional.curves import area_under_roc

_TRUE = 200  # sets whose mean rank-k is taken for the true one


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, judge, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="an .npz with emb and label")
    parser.add_argument("--identities", type=int, default=200, help="of a test set (%(default)s)")
    parser.add_argument("--sets", type=int, default=50, help="(%(default)s)")
    parser.add_argument("--far", type=float, nargs="+", default=[1e-2, 1e-3], help="(%(default)s)")
    parser.add_argument("--most", type=int, default=10, help="pictures of an identity (%(default)s)")
    options = parser.parse_args(arguments)
    rows, labels = _population(options.rows, options.most)
    everybody = int(labels.max()) + 1
    print(f"{everybody:,} identities, {len(rows):,} pictures; sets of {options.identities}")
    draw = np.random.default_rng(0)
    true = _truth(rows, labels, options.far)
    ranks: dict[str, list[float]] = {}
    for _ in trange(_TRUE, desc="truth"):
        for found in one_shot(*_drawn(rows, labels, options.identities, draw)):
            ranks.setdefault(found.name, []).append(found.value)
    true.update({name: float(np.mean(values)) for name, values in ranks.items()})
    inside: dict[str, int] = {}
    for _ in trange(options.sets, desc="sets"):
        for name, interval in _judged(*_drawn(rows, labels, options.identities, draw), options.far):
            value = true[name.split(",")[0]]
            inside[name] = inside.get(name, 0) + (interval.low <= value <= interval.high)
    for name, count in inside.items():
        print(f"{name}: {true[name.split(',')[0]]:.4f} is inside {count} of {options.sets} intervals")
    return 0


def _population(path: Path, most: int) -> tuple[Tensor, Tensor]:
    """Unit rows (N, D) and identities (N,) from 0 on: those with two pictures or more, at most ``most`` of each."""
    with np.load(path) as content:
        rows, labels = content["emb"].astype(np.float32), content["label"]
    order = np.random.default_rng(0).permutation(len(labels))
    place = np.argsort(labels[order], kind="stable")
    order, run = order[place], np.arange(len(labels))
    first = np.r_[True, np.diff(labels[order]) != 0]
    kept = order[run - np.maximum.accumulate(np.where(first, run, 0)) < most]
    several = np.isin(labels[kept], np.flatnonzero(np.bincount(labels[kept]) > 1))
    kept = kept[several]
    return F.normalize(torch.from_numpy(rows[kept])), torch.from_numpy(np.unique(labels[kept], return_inverse=True)[1])


def _drawn(rows: Tensor, labels: Tensor, size: int, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    chosen = draw.choice(int(labels.max()) + 1, size, replace=False)
    kept = torch.isin(labels, torch.from_numpy(chosen))
    return rows[kept], labels[kept]


def _pairs(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Cosine, sameness and both identities of every pair."""
    one, other = torch.triu_indices(len(rows), len(rows), 1)
    return (rows @ rows.T)[one, other], labels[one] == labels[other], (labels[one], labels[other])


def _truth(rows: Tensor, labels: Tensor, fars: Sequence[float]) -> dict[str, float]:
    found = all_pairs_tar(rows, labels, fars)
    scores, same, _ = _pairs(rows, labels)
    return {f"tar@far={p.wanted_far:g}": p.tar for p in found.points} | {"auc": float(area_under_roc(scores, same))}


def _judged(rows: Tensor, labels: Tensor, fars: Sequence[float]) -> Iterator[tuple[str, Interval]]:
    scores, same, who = _pairs(rows, labels)
    held = all_pairs_tar(rows, labels, fars)
    for number, far in enumerate(fars):
        yield f"tar@far={far:g}", tar_interval(scores, same, far, who)
        interval = ratio_interval(held.accepted_by_identity[number], held.pairs_by_identity)
        yield f"tar@far={far:g}, all_pairs: at the threshold found", interval
    yield "auc", auc_interval(scores, same, who)
    for found in one_shot(rows, labels):
        assert found.interval is not None
        yield found.name, found.interval


if __name__ == "__main__":
    raise SystemExit(main())
