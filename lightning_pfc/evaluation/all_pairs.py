"""True accept rate at very low false accept rates over all pairs of a set of embeddings, exact, in bounded memory.

N embeddings make ``N (N - 1) / 2`` pairs, far too many to keep. But a rate needs one order statistic of the impostor
scores, which `impostor_search` finds; the pairs of one identity are few and are enumerated (`genuine_scores`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_pfc.evaluation.blockwise import UnitRows
from lightning_pfc.evaluation.genuine_scores import genuine_scores
from lightning_pfc.evaluation.impostor_search import ImpostorSearch
from lightning_pfc.evaluation.peers import Peers
from lightning_pfc.matmul.float32 import true_float32
from lightning_pfc.metrics.functional.checks import check_rate
from lightning_pfc.metrics.functional.curves import allowed_false_accepts


class AllPairsPoint(NamedTuple):
    """One operating point over all pairs.

    Attributes:
        wanted_far: The false accept rate asked for.
        tar: True accept rate.
        far: False accept rate that is really reached, at most the one asked for.
        threshold: A pair is accepted when its cosine is above it.
        false_accepts: Impostor pairs accepted.
        true_accepts: Genuine pairs accepted.
    """

    wanted_far: float
    tar: float
    far: float
    threshold: float
    false_accepts: int
    true_accepts: int


@dataclass(frozen=True)
class AllPairsResult:
    """What :func:`all_pairs_tar` found.

    Attributes:
        points: One per rate, in the order asked for.
        num_genuine: Genuine pairs.
        num_impostor: Impostor pairs.
        passes: How often all pairs were gone through.
        accepted_by_identity: Genuine pairs of each identity that each point accepts, (points, identities) int64, for
            confidence intervals.
        pairs_by_identity: Genuine pairs of each identity, (identities,) int64.
    """

    points: list[AllPairsPoint]
    num_genuine: int
    num_impostor: int
    passes: int
    accepted_by_identity: Tensor
    pairs_by_identity: Tensor


def all_pairs_tar(
    embeddings: Tensor,
    labels: Tensor,
    fars: Sequence[float] = (1e-3, 1e-4, 1e-5, 1e-6),
    *,
    block: int = 2048,
    max_kept: int = 1 << 24,
    peers: Peers | None = None,
    device: torch.device | str | None = None,
) -> AllPairsResult:
    """True accept rate at false accept rates over all pairs of images.

    The result is the one that sorting the float64 cosines of all pairs would give, with the operating point of
    :func:`~lightning_pfc.metrics.functional.curves.tar_at_far`; it does not depend on ``block``, the number of ranks or
    the device.

    Memory: the embeddings twice, one block of scores, and at most ``max_kept`` float64 scores at a time.
    Time: usually one pass of ``N^2 D / 2`` multiply-adds, shared by the ranks.
    Collectives: per pass, one all-reduce of counts and one gather of kept scores; every rank must call it with the same
    arguments, all embeddings included.

    Args:
        embeddings: Shape (N, D), any float dtype.
        labels: Identity of each row, shape (N,), integers.
        fars: False accept rates in (0, 1].
        block: Rows and columns of a block of scores.
        max_kept: Most scores kept at a time, over all ranks; more passes are made if it does not suffice.
        peers: The ranks that share the work; None takes the default process group if there is one.
        device: Where to multiply; None stays where the embeddings are.

    Returns:
        Points, counts, and what confidence intervals need.

    Raises:
        ValueError: On wrong shapes, a row that is not finite, a rate outside (0, 1], a missing kind of pairs, or scores
            so tied that ``max_kept`` cannot hold the ties' neighbourhood.
    """
    peers = peers or Peers.current()
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"labels must be (N,) for embeddings (N, D), got {tuple(labels.shape)}, {tuple(embeddings.shape)}"
        )
    if block < 1 or max_kept < 1:
        raise ValueError(f"block={block} and max_kept={max_kept} must be at least 1")
    if device is not None:
        embeddings = embeddings.to(device)
    rows = UnitRows(embeddings)
    identity = torch.unique(labels.to(rows.raw.device), return_inverse=True)[1]
    sizes = torch.bincount(identity)
    by_identity = (sizes * (sizes - 1) // 2).cpu()
    num_genuine = int(by_identity.sum())
    num_impostor = len(rows) * (len(rows) - 1) // 2 - num_genuine
    if not num_genuine or not num_impostor:
        raise ValueError("labels must make both kinds of pairs: two images of one identity, and two identities")
    allowed = [min(allowed_false_accepts(check_rate(far, "fars"), num_impostor), num_impostor) for far in fars]
    # The threshold is the best impostor that may not pass: number allowed + 1 from the top.
    sought = sorted({count + 1 for count in allowed if count < num_impostor})
    with true_float32(), torch.no_grad():
        search = ImpostorSearch(rows, identity, sought, num_impostor, block, max_kept, peers)
        found = search.run()
        thresholds = [found[count + 1] if count < num_impostor else -math.inf for count in allowed]
        accepted = _accepted_by_identity(rows, identity, len(sizes), thresholds, peers)
    points = [
        AllPairsPoint(far, int(hits.sum()) / num_genuine, fa / num_impostor, threshold, fa, int(hits.sum()))
        for far, threshold, hits, fa in zip(
            fars, thresholds, accepted, (search.false_accepts(t, num_impostor) for t in thresholds), strict=True
        )
    ]
    return AllPairsResult(points, num_genuine, num_impostor, search.passes, accepted, by_identity)


def _accepted_by_identity(
    rows: UnitRows, identity: Tensor, num_identities: int, thresholds: list[float], peers: Peers
) -> Tensor:
    accepted = torch.zeros((len(thresholds), num_identities), dtype=torch.int64, device=identity.device)
    for owner, scores in genuine_scores(rows, identity, peers):
        for n, threshold in enumerate(thresholds):
            accepted[n] += torch.bincount(owner[scores > threshold], minlength=num_identities)
    return peers.sum(accepted)
