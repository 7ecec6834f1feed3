"""How well embeddings know identities again that were never trained: one picture of each against all others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def one_shot(embeddings: NDArray[np.float32], labels: NDArray[np.int64], draws: int = 20) -> float:
    """Share of pictures whose nearest gallery entry is of their identity; a gallery has one picture of each.

    Args:
        embeddings: (N, D).
        labels: (N,).
        draws: galleries, whose mean is taken.
    """
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(1e-12)
    names, number = np.unique(labels, return_inverse=True)
    rates = []
    for seed in range(draws):
        order = np.random.default_rng(seed).permutation(len(labels))
        gallery = order[np.unique(number[order], return_index=True)[1]]
        probes = np.setdiff1d(np.arange(len(labels)), gallery)
        found = (unit[probes] @ unit[gallery].T).argmax(1)
        rates.append((number[gallery][found] == number[probes]).mean())
    assert len(names) > 1
    return 100 * float(np.mean(rates))
