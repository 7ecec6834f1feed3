"""Sets to choose rules by, of the training identities of others: some to train on, the rest to judge.

    python held_back.py sets/ held/ --sets digits fashion few_large --folds 3
    python study.py held/ --scripts --words "loss=softmax" --share 0.15 --rules v3 --log held_back.jsonl

``held/SET_K`` has a part of the training identities of ``sets/SET`` as its test; the parts of all folds are disjoint.
The test identities of the study are not looked at.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np


def held_back(training: Path, folds: int) -> list[set[str]]:
    """Names of the identities that each fold judges: a third at most, each once at most."""
    names = np.array(sorted(place.name for place in training.iterdir()))
    order = np.random.default_rng(99).permutation(len(names))
    each = max(2, len(names) // max(folds, 3))
    return [set(names[order[fold * each : (fold + 1) * each]].tolist()) for fold in range(folds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sets", nargs="*", required=True)
    parser.add_argument("--folds", type=int, default=3)
    arguments = parser.parse_args()
    for name in arguments.sets:
        training = arguments.folder / name / "train"
        for fold, aside in enumerate(held_back(training, arguments.folds)):
            for place in sorted(training.iterdir()):
                part = "test" if place.name in aside else "train"
                shutil.copytree(place, arguments.out / f"{name}_{fold}" / part / place.name, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
