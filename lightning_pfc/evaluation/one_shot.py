"""One-shot identification: one picture of each identity is known, and every other picture searches among them.

Which picture is known is drawn several times. The interval is by identity, with both of its roles in it: whose pictures
search, and whose known picture takes other searches away. It is that of the delete-one jackknife over identities, on
the scale of the log odds (B. Efron, The Jackknife, the Bootstrap and Other Resampling Plans, 1982, chapter 3): a
bootstrap would put an identity twice into the gallery, or leave a third of the confusers out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_pfc.evaluation.blockwise import UnitRows
from lightning_pfc.evaluation.intervals import Interval, interval_of
from lightning_pfc.evaluation.report import Measurement
from lightning_pfc.matmul.float32 import true_float32

_MOST_SCORES = 1 << 28  # of all galleries together
_BLOCK = 1 << 22  # scores at a time
_MATE_ROUNDING = 2.0**-23  # of a cosine in float32


def one_shot(
    embeddings: Tensor,
    labels: Tensor,
    *,
    ranks: Sequence[int] = (1, 5),
    draws: int = 10,
    level: float = 0.95,
    seed: int = 0,
) -> list[Measurement]:
    """Rank-k rates with one known picture of each identity.

    A non-mate that ties with the mate counts against it, by float64 cosines. Identities with one picture are known, and
    never search.

    Args:
        embeddings: (n, D), of any length.
        labels: Identity of each, (n,) integers.
        ranks: The k's; those that no gallery of this size can miss are left out.
        draws: Galleries; fewer where they would take more than 2^28 scores.
        level: Of the intervals.
        seed: Of the draws.

    Returns:
        ``rank-k`` for each k; nothing where no identity has two pictures or there is one identity.

    Raises:
        ValueError: On wrong shapes, a row that is not finite, or fewer than one draw.
    """
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(f"embeddings {tuple(embeddings.shape)} must be (n, D), and labels {tuple(labels.shape)} (n,)")
    if draws < 1:
        raise ValueError(f"draws={draws} must be at least 1")
    rows, identity = UnitRows(embeddings), torch.unique(labels, return_inverse=True)[1]
    size = int(identity.max()) + 1 if len(identity) else 0
    probes = len(identity) - size
    if size < 2 or probes < 1:
        return []
    generator = torch.Generator().manual_seed(seed)
    wanted = [k for k in ranks if k < size]
    tallies = {k: torch.zeros(3, size, dtype=torch.float64) for k in wanted}  # hits, searches, searches taken away
    for _ in range(max(1, min(draws, _MOST_SCORES // (probes * size)))):
        order = torch.randperm(len(identity), generator=generator)
        known = torch.empty(size, dtype=torch.int64).scatter_(0, identity[order], order)
        searching = torch.ones(len(identity), dtype=torch.bool)
        searching[known] = False
        with true_float32(), torch.no_grad():
            _search(rows, identity, known, searching.nonzero().squeeze(1), tallies)
    text = f"one known picture of each of {size:,} identities"
    return [Measurement(f"rank-{k}", *_rate(tally, level), text) for k, tally in tallies.items()]


def _search(rows: UnitRows, identity: Tensor, known: Tensor, probes: Tensor, tallies: dict[int, Tensor]) -> None:
    for part in torch.split(probes, max(1, _BLOCK // len(known))):
        owner = identity[part]
        beats = _reaches(rows, part, known, owner)
        beats.scatter_(1, owner[:, None], False)
        rank = beats.sum(1)
        for k, tally in tallies.items():
            tally[0] += torch.bincount(owner[rank < k], minlength=len(known))
            tally[1] += torch.bincount(owner, minlength=len(known))
            tally[2] += beats[rank == k].sum(0)  # each of these alone made the difference


def _reaches(rows: UnitRows, probes: Tensor, known: Tensor, owner: Tensor) -> Tensor:
    """Whether each known picture scores at least what the probe's mate does, (p, g) bool."""
    mate = rows.exact(probes, known[owner])
    margin = (rows.unit[probes] @ rows.unit[known].T).sub_(mate.float()[:, None])
    close = margin.abs().amin(1).le(rows.tolerance + _MATE_ROUNDING).nonzero().squeeze(1)  # but few rows
    row, column = (margin[close].abs() <= rows.tolerance + _MATE_ROUNDING).nonzero(as_tuple=True)
    row = close[row]
    exact = rows.exact(probes[row], known[column]) - mate[row]
    margin[row, column] = exact.sign().float()  # a difference that float32 would call 0 stays one
    return margin >= 0


def _rate(tally: Tensor, level: float) -> tuple[float, Interval]:
    hits, searches, taken = tally
    rate = float(hits.sum() / searches.sum())
    without = (hits.sum() - hits + taken) / (searches.sum() - searches).clamp_min(1)
    moves = (without.mean() - without) * (len(hits) - 1) / len(hits)
    return rate, interval_of(rate, moves.numpy(), level, int((searches > 0).sum()))
