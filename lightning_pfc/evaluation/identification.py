"""Identification: where the mates of a probe stand in a gallery, closed set, open set and with distractors.

Ranks and thresholds are those of float64 cosines (see :mod:`lightning_pfc.evaluation.blockwise`). A non-mate that ties
with the best mate counts against it, so embeddings that are all equal identify nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_pfc.evaluation.blockwise import UnitRows
from lightning_pfc.evaluation.peers import Peers
from lightning_pfc.matmul.float32 import true_float32
from lightning_pfc.metrics.functional.checks import check_rate
from lightning_pfc.metrics.functional.curves import allowed_false_accepts

_MOST_HITS = 1 << 22
DISTRACTOR = -1


@dataclass(frozen=True)
class ProbeResults:
    """What a search found for each probe.

    Attributes:
        mated: Whether the gallery holds the probe's identity, (n,) bool.
        rank: How many non-mates score at least what the best mate does, (n,) int64; 0 is a hit at rank 1. Means nothing
            for a probe without mates.
        score: Cosine to the best mate, or to the best of all for a probe without mates, (n,) float64.
    """

    mated: Tensor
    rank: Tensor
    score: Tensor


def search(
    probes: Tensor,
    probe_labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    *,
    block: int = 4096,
    peers: Peers | None = None,
) -> ProbeResults:
    """Search every probe in a gallery; identities may have several images there (the best one counts).

    Collectives: three all-reduces; every rank must call it with the same arguments.

    Args:
        probes: Embeddings, (n, D).
        probe_labels: Identities, (n,) integers.
        gallery: Embeddings, (g, D).
        gallery_labels: Identities, (g,) integers; :data:`DISTRACTOR` (-1) is nobody's.
        block: Rows and columns of a block of scores.
        peers: The ranks that share the work; None takes the default process group if there is one.

    Returns:
        One entry per probe, the same on every rank.

    Raises:
        ValueError: On wrong shapes, an empty side, a negative probe label, or a row that is not finite.
    """
    _check_labels(probes, probe_labels, "probes")
    _check_labels(gallery, gallery_labels, "gallery")
    check_widths(probes=probes, gallery=gallery)
    if int(probe_labels.min()) < 0:
        raise ValueError("probe_labels holds a negative label; -1 marks distractors, which belong in the gallery")
    peers = peers or Peers.current()
    one, other = UnitRows(probes), UnitRows(gallery)
    own = peers.share(len(one))
    mine = torch.arange(own.start, own.stop, device=probes.device)
    with true_float32(), torch.no_grad():
        best = torch.full((len(one),), -torch.inf, dtype=torch.float64, device=probes.device)
        for p, g in _mates(mine, probe_labels, gallery_labels):
            best.scatter_reduce_(0, p, one.exact(p, g, other), "amax")
        mated = best > -torch.inf
        counts = torch.zeros((len(one), 1), dtype=torch.int64, device=probes.device)
        with_mate, without = mine[mated[mine]], mine[~mated[mine]]
        labels = (probe_labels, gallery_labels)
        counts[with_mate] = count_reaching(one, with_mate, best[with_mate, None], other, labels, block=block)
        score = torch.zeros_like(best)
        score[with_mate] = best[with_mate]
        score[without] = _top_scores(one, without, other, block)
    return ProbeResults(peers.sum(mated.long()) > 0, peers.sum(counts)[:, 0], peers.sum(score))


def rank_among_distractors(
    embeddings: Tensor,
    labels: Tensor,
    distractors: Tensor,
    *,
    block: int = 4096,
    peers: Peers | None = None,
) -> tuple[Tensor, Tensor]:
    """MegaFace's protocol: each image searches each other image of its identity among the distractors.

    Every ordered pair of images of one identity is one trial, whose gallery is the second image and all distractors.

    Args:
        embeddings: Probe set, (n, D).
        labels: Identities, (n,) integers.
        distractors: Embeddings of nobody in the probe set, (m, D).
        block: Rows and columns of a block of scores.
        peers: As for :func:`search`.

    Returns:
        Identity of each trial and how many distractors reach its mate's score, (trials,) int64 each, in the order of
        probes; the same on every rank.

    Raises:
        ValueError: On wrong shapes, an empty side, or when no identity has two images.
    """
    _check_labels(embeddings, labels, "embeddings")
    if not len(distractors):
        raise ValueError("distractors is empty; use search for a gallery without distractors")
    check_widths(embeddings=embeddings, distractors=distractors)
    peers = peers or Peers.current()
    one, other = UnitRows(embeddings), UnitRows(distractors)
    identity = torch.unique(labels, return_inverse=True)[1]
    most = int(torch.bincount(identity).max()) - 1
    if most < 1:
        raise ValueError("labels names no identity with two images; there is no mate to search for")
    thresholds = torch.full((len(one), most), torch.inf, dtype=torch.float64, device=embeddings.device)
    place = torch.zeros(len(one), dtype=torch.int64, device=embeddings.device)
    with true_float32(), torch.no_grad():
        for p, g in _mates(torch.arange(len(one), device=embeddings.device), labels, labels):
            p, g = p[p != g], g[p != g]
            thresholds[p, place[p]] = one.exact(torch.minimum(p, g), torch.maximum(p, g))
            place[p] += 1
        thresholds = thresholds.sort(dim=1).values
        own = peers.share(len(one))
        rows = torch.arange(own.start, own.stop, device=embeddings.device)
        counts = torch.zeros((len(one), most), dtype=torch.int64, device=embeddings.device)
        counts[rows] = count_reaching(one, rows, thresholds[rows], other, None, block=block)
    counts = peers.sum(counts)
    trial = (thresholds < torch.inf).cpu()
    return labels.cpu()[:, None].expand_as(trial)[trial], counts[trial]


def identification_rate(rank: Tensor, k: int) -> float:
    """Share of trials with fewer than ``k`` non-mates ahead: the CMC at rank ``k``.

    Raises:
        ValueError: When ``k`` is below 1 or there is no trial.
    """
    if k < 1 or not len(rank):
        raise ValueError(f"k={k} must be at least 1, and there must be a trial (there are {len(rank)})")
    return float((rank < k).double().mean())


def tpir_at_fpir(results: ProbeResults, fpir: float) -> tuple[float, float]:
    """True positive identification rate at a false positive identification rate, open set.

    At most ``floor(fpir * N)`` of the N probes without mates may have any gallery entry above the threshold. A probe
    with mates is identified when its best mate is first and above the threshold.

    Args:
        results: From :func:`search`; with both kinds of probes.
        fpir: Wanted rate in (0, 1].

    Returns:
        The rate and the threshold.

    Raises:
        ValueError: When one kind of probes is missing, or ``fpir`` is outside (0, 1].
    """
    others = results.score[~results.mated]
    if not len(others) or not bool(results.mated.any()):
        raise ValueError("TPIR at FPIR needs probes with and without mates in the gallery")
    allowed = allowed_false_accepts(check_rate(fpir, "fpir"), len(others))
    threshold = float("-inf") if allowed >= len(others) else float(others.sort(descending=True).values[allowed])
    return float(identified(results, threshold).double().mean()), threshold


def identified(results: ProbeResults, threshold: float) -> Tensor:
    """Which of the probes with mates are found first and above a threshold, (mated probes,) bool."""
    return (results.rank[results.mated] == 0) & (results.score[results.mated] > threshold)


def count_reaching(
    probes: UnitRows,
    rows: Tensor,
    thresholds: Tensor,
    gallery: UnitRows,
    labels: tuple[Tensor, Tensor] | None,
    *,
    block: int,
) -> Tensor:
    """How many gallery entries of other identities score at least each threshold of each row.

    Args:
        probes: All probes.
        rows: Which of them to count for, (r,) int64.
        thresholds: Ascending per row, (r, M) float64; unused ones are infinite.
        gallery: The gallery.
        labels: Labels of all probes and of the gallery, to leave mates out; None counts everything.
        block: Rows and columns of a block.

    Returns:
        Counts, (r, M) int64.
    """
    width = thresholds.shape[1]
    counts = torch.zeros((len(rows), width + 1), dtype=torch.int64, device=rows.device)
    tolerance = probes.tolerance
    # Rounded down to float32 by more than a float32 step at 1.
    floor = (thresholds[:, 0] - tolerance - 2.0**-22).float()
    for top in range(0, len(rows), block):
        part = rows[top : top + block]
        unit = probes.unit[part]
        for left in range(0, len(gallery), block):
            scores = unit @ gallery.unit[left : left + block].T
            hit_row, column = (scores >= floor[top : top + block, None]).nonzero(as_tuple=True)
            values = scores[hit_row, column].double()
            for start in range(0, len(values), max(1, _MOST_HITS // width)):
                chunk = slice(start, start + max(1, _MOST_HITS // width))
                r, c, v = hit_row[chunk], left + column[chunk], values[chunk]
                if labels is not None:
                    other = labels[0][part[r]] != labels[1][c]
                    r, c, v = r[other], c[other], v[other]
                limits = thresholds[top + r]
                low = _reached(limits, v - tolerance)
                near = (low != _reached(limits, v + tolerance)).nonzero().squeeze(1)
                low[near] = _reached(limits[near], probes.exact(part[r[near]], c[near], gallery))
                flat = torch.bincount((top + r) * (width + 1) + low, minlength=counts.numel())
                counts += flat.view_as(counts)
    # A score that reaches i thresholds counts for the first i of its row.
    return counts.flip(1).cumsum(1).flip(1)[:, 1:]


def _reached(limits: Tensor, values: Tensor) -> Tensor:
    return torch.searchsorted(limits, values[:, None], right=True).squeeze(1)


def _top_scores(probes: UnitRows, rows: Tensor, gallery: UnitRows, block: int) -> Tensor:
    """Exact cosine to the best gallery entry, (r,) float64."""
    best = torch.full((len(rows),), -torch.inf, dtype=torch.float64, device=rows.device)
    for top in range(0, len(rows), block):
        part = rows[top : top + block]
        for left in range(0, len(gallery), block):
            scores = probes.unit[part] @ gallery.unit[left : left + block].T
            floor = scores.amax(1) - 2 * probes.tolerance
            # Nothing that is clearly below the best of earlier blocks need be looked at.
            floor = torch.maximum(floor, (best[top : top + block] - probes.tolerance - 2.0**-22).float())
            r, c = (scores >= floor[:, None]).nonzero(as_tuple=True)
            best.scatter_reduce_(0, top + r, probes.exact(part[r], left + c, gallery), "amax")
    return best


def _mates(rows: Tensor, labels: Tensor, gallery_labels: Tensor) -> Sequence[tuple[Tensor, Tensor]]:
    """Probe and gallery positions of all mates, in parts that name each probe once."""
    sorted_labels, order = gallery_labels.sort(stable=True)
    wanted = labels[rows]
    start = torch.searchsorted(sorted_labels, wanted)
    stop = torch.searchsorted(sorted_labels, wanted, right=True)
    parts = []
    step = 0
    while bool((alive := start + step < stop).any()):
        parts.append((rows[alive], order[start[alive] + step]))
        step += 1
    return parts


def check_widths(**sets: Tensor) -> None:
    """See that embeddings, each (n, D), have one D.

    Raises:
        ValueError: they have not; says which has what.
    """
    if len({rows.shape[1:] for rows in sets.values()}) > 1:
        text = ", ".join(f"{name} {tuple(rows.shape)}" for name, rows in sets.items())
        raise ValueError(f"embeddings of several widths: {text}; all must come from one model")


def _check_labels(embeddings: Tensor, labels: Tensor, name: str) -> None:
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1] or not len(labels):
        raise ValueError(
            f"{name} must be (n, D) with one label each and at least one row, got {tuple(embeddings.shape)} and labels "
            f"{tuple(labels.shape)}"
        )
