"""How often the rate that a threshold promises is found again on other identities.

    python recipes/deploy/coverage.py runs/X --far 1e-3       the run's test identities
    python recipes/deploy/coverage.py rows.npz --far 1e-3     what `pfc-embed` wrote
    python recipes/deploy/coverage.py rows.npz --fpir 0.05 --gallery 500

The identities are split at random into halves: a threshold is chosen on one, as `pfc-eval calibrate.far=` does, and
what it does on the other is compared with the interval that came with it (95 %). Take many splits: of 50 independent
ones all lie inside once in 13 times (0.95 to the 50th), and splits of one set share identities. Prints what was found
as it goes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lightning_pfc.calibration.choose_identification import check_identification, choose_identification
from lightning_pfc.calibration.choose_verification import check, choose
from lightning_pfc.calibration.material import Material
from lightning_pfc.calibration.spread import Draws


def main(arguments: Sequence[str] | None = None) -> int:
    """Split, choose, check, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a run, or an .npz with emb and label")
    parser.add_argument("--far", type=float, help="share of impostor pairs")
    parser.add_argument("--fpir", type=float, help="share of strangers who are found in a gallery, instead")
    parser.add_argument("--gallery", type=int, default=500, help="identities in that gallery (500)")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--most", type=int, default=10, help="pictures of an identity, as calibrate.pictures (10)")
    parser.add_argument("--replicates", type=int, default=1000, help="of the bootstrap")
    options = parser.parse_args(arguments)
    if (options.far is None) == (options.fpir is None):
        parser.error("give --far or --fpir")
    rows, labels = _few(*_embeddings(options.source), options.most)
    inside, ratios = 0, []
    for split in range(options.splits):
        first, second = _halves(rows, labels, split)
        draws = Draws(replicates=options.replicates, seed=split)
        if options.far is not None:
            found = check(first, choose(first, options.far, flip="none", model="", draws=draws), second, draws)
        else:
            chosen = choose_identification(first, options.fpir, options.gallery, flip="none", model="", draws=draws)
            found = check_identification(first, chosen, second, draws)
        if found is None:
            raise SystemExit(f"half of the identities are too few for a gallery of {options.gallery}; give --gallery")
        inside += bool(found["inside"])
        ratios.append(found["rate"] / (options.far or options.fpir))
        print(
            f"{inside} of {split + 1} inside, {100 * inside / (split + 1):.1f} %; rate found / promised: "
            f"{np.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}",
            flush=True,
        )
    return 0


def _embeddings(source: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, D) and (N,)."""
    if source.is_file():
        with np.load(source) as content:
            return torch.from_numpy(content["emb"].astype(np.float32)), torch.from_numpy(content["label"]).long()
    from lightning_pfc.runs.run_folder import Run

    run = Run(source)
    part, network = run.data.test["test"], run.network.eval()
    places = np.arange(len(part.images))
    with torch.inference_mode():
        batches = [
            network(run.preprocessing.tensor(part.images.fetch(places[i : i + 256])))
            for i in range(0, len(places), 256)
        ]
    return torch.cat(batches), part.identity


def _few(rows: torch.Tensor, labels: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """At most so many pictures of an identity."""
    order = np.random.default_rng(0).permutation(len(labels))
    _, number = np.unique(labels.numpy()[order], return_inverse=True)
    by_identity = np.argsort(number, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(number))[:-1]])
    place = np.arange(len(order)) - starts[number[by_identity]]
    kept = np.sort(order[by_identity[place < most]])
    return rows[kept], labels[kept]


def _halves(rows: torch.Tensor, labels: torch.Tensor, split: int) -> tuple[Material, Material]:
    identities = np.random.default_rng(split).permutation(torch.unique(labels).numpy())
    chosen = torch.isin(labels, torch.from_numpy(identities[: len(identities) // 2]))
    return (
        Material("one half", embeddings=rows[chosen], labels=labels[chosen]),
        Material("the other half", embeddings=rows[~chosen], labels=labels[~chosen]),
    )


if __name__ == "__main__":
    sys.exit(main())
