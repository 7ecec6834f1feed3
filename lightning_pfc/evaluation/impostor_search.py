"""Order statistics of the scores of all impostor pairs, exact, in bounded memory.

A sample of pairs says within narrow bounds where one lies; one pass over all pairs, block by block, counts what lies
above the bounds and keeps what lies between them; the order statistic is then looked up. That it lies between them is
checked by the counts, never assumed: if it does not, the bounds move and the pass is repeated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_pfc.evaluation.blockwise import UnitRows, entries_above
from lightning_pfc.evaluation.genuine_scores import genuine_scores
from lightning_pfc.evaluation.peers import Peers

_SAMPLE_BLOCK, _SAMPLE_BLOCKS, _SAMPLE_BINS = 1024, 64, 1 << 14
_WINDOW_BINS = 4096


@dataclass
class _Window:
    """Bounds (low, high] on a score, and what one pass found in and above them."""

    low: float
    high: float
    above: int = 0  # all pairs certainly above the tolerance around the window
    kept: list[Tensor] = field(default_factory=list)
    kept_count: int = 0
    overflow: bool = False
    histogram: Tensor = field(default_factory=lambda: torch.zeros(_WINDOW_BINS, dtype=torch.int64))


class ImpostorSearch:
    """Finds order statistics of the impostor scores by passes over all pairs."""

    def __init__(
        self,
        rows: UnitRows,
        identity: Tensor,
        sought: list[int],
        num_impostor: int,
        block: int,
        max_kept: int,
        peers: Peers,
    ) -> None:
        self.rows, self.identity, self.block, self.max_kept, self.peers = rows, identity, block, max_kept, peers
        self.open = list(sought)
        self.found: dict[int, float] = {}
        # Scores whose exact number of impostors above them is known; the ends are beyond any cosine.
        self.known: dict[float, int] = {-1.1: num_impostor, 1.1: 0}
        self.above_found: dict[float, int] = {}
        self.passes = 0

    def run(self) -> dict[int, float]:
        """The score at each rank sought, 1 being the highest."""
        if not self.open:
            return self.found
        bounds = {rank: self._within(rank, *pair) for rank, pair in self._guess().items()}
        while self.open:
            windows = _merge(list(bounds.values()), 2 * self.rows.tolerance)
            self._pass(windows)
            bounds = {rank: self._settle(rank, bounds[rank], windows) for rank in list(self.open)}
            bounds = {rank: bounds[rank] for rank in self.open}
        return self.found

    def false_accepts(self, threshold: float, num_impostor: int) -> int:
        """Impostor pairs above a score that was found; all of them above minus infinity."""
        return num_impostor if threshold == -math.inf else self.above_found[threshold]

    def _guess(self) -> dict[int, tuple[float, float]]:
        """Bounds for each order statistic from blocks of random pairs, wide enough that they nearly always hold."""
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(self.rows), generator=generator).to(self.identity.device)
        size = min(_SAMPLE_BLOCK, len(order) // 2)
        if size < 2:
            return dict.fromkeys(self.open, (-1.1, 1.1))
        blocks = [
            (order[start : start + size], order[start + size : start + 2 * size])
            for start in range(0, len(order) - 2 * size + 1, 2 * size)
        ][:_SAMPLE_BLOCKS]
        histograms = torch.stack([self._sample(a, b) for a, b in blocks]).double()
        # Share of each block's impostors at or above each bin, from the top bin down.
        share = histograms.flip(1).cumsum(1) / histograms.sum(1, keepdim=True).clamp(min=1)
        mean = share.mean(0)
        total = float(histograms.sum())
        spread = share.std(0) / math.sqrt(len(blocks)) if len(blocks) > 1 else mean * 0.2
        spread = spread + (mean / total).sqrt() + 4.0 / total
        edges = 1.0 - torch.arange(1, _SAMPLE_BINS + 1, dtype=torch.float64) * (2.0 / _SAMPLE_BINS)
        bounds = {}
        for rank in self.open:
            wanted = rank / self.known[-1.1]
            low = int(torch.searchsorted(mean - 5 * spread, torch.tensor(wanted, dtype=torch.float64)))
            high = int(((mean + 5 * spread) < wanted).sum())
            bounds[rank] = (
                float(edges[low]) if low < len(edges) else -1.1,
                float(edges[high - 1]) if high > 0 else 1.1,
            )
        return bounds

    def _sample(self, first: Tensor, second: Tensor) -> Tensor:
        scores = self.rows.unit[first] @ self.rows.unit[second].T
        impostor = self.identity[first, None] != self.identity[None, second]
        return torch.histc(scores[impostor], _SAMPLE_BINS, -1.0, 1.0).cpu()

    def _within(self, rank: int, low: float, high: float) -> tuple[float, float]:
        """Bounds cut down to what is known already."""
        best_low = max(v for v, above in self.known.items() if above >= rank)
        best_high = min(v for v, above in self.known.items() if above < rank)
        low, high = max(low, best_low), min(high, best_high)
        return (low, high) if low < high else (best_low, best_high)

    def _pass(self, windows: list[_Window]) -> None:
        """Go through all pairs once; afterwards every window knows how many impostors lie above and what is in it."""
        self.passes += 1
        blocks = -(-len(self.rows) // self.block)
        budget = max(1, self.max_kept // self.peers.world_size)
        number = 0
        for i in range(blocks):
            for j in range(i, blocks):
                if number % self.peers.world_size == self.peers.rank:
                    self._block(i, j, windows, budget)
                number += 1
        genuine_above = torch.zeros(2 * len(windows), dtype=torch.int64)
        edges = torch.tensor([edge for window in windows for edge in (window.low, window.high)], dtype=torch.float64)
        for chunk in self._genuine_shares():
            genuine_above += (chunk[:, None] > edges.to(chunk.device)).sum(0).cpu()
        counts = torch.tensor([[w.above, w.kept_count, int(w.overflow)] for w in windows], dtype=torch.int64)
        summed = self.peers.sum(torch.cat([counts.flatten(), genuine_above]))
        counts, genuine_above = summed[: counts.numel()].view(-1, 3), summed[counts.numel() :].view(-1, 2)
        for n, window in enumerate(windows):
            window.histogram = self.peers.sum(window.histogram)
            window.overflow = bool(counts[n, 2])
            window.above = int(counts[n, 0]) - int(genuine_above[n, 1])  # impostors above `high`
            inside = int(window.histogram.sum())
            self.known[window.high] = window.above
            self.known[window.low] = window.above + inside
            if not window.overflow:
                kept = torch.cat(window.kept) if window.kept else torch.zeros(0, dtype=torch.float64)
                window.kept = [self.peers.cat(kept).sort(descending=True).values]

    def _block(self, i: int, j: int, windows: list[_Window], budget: int) -> None:
        top, left = i * self.block, j * self.block
        scores = self.rows.unit[top : top + self.block] @ self.rows.unit[left : left + self.block].T
        if i == j:
            scores = scores.masked_fill_(torch.ones_like(scores, dtype=torch.bool).tril_(), -2.0)
        tolerance, width = self.rows.tolerance, scores.shape[1]
        position, values = entries_above(scores, _below(windows[0].low - tolerance))
        for window in windows:  # from low to high
            keep = values >= _below(window.low - tolerance)
            if not bool(keep.all()):
                position, values = position[keep], values[keep]
            near = values <= _above(window.high + tolerance)
            window.above += len(values) - int(near.sum())
            place = position[near]
            first, second = top + place // width, left + place % width
            exact = self.rows.exact(first, second)
            window.above += int((exact > window.high).sum())
            impostor = self.identity[first] != self.identity[second]
            inside = exact[impostor & (exact > window.low) & (exact <= window.high)].cpu()
            window.histogram += torch.bincount(_bins(inside, window), minlength=_WINDOW_BINS)
            if window.overflow:
                continue
            window.kept.append(inside)
            window.kept_count += len(inside)
            if sum(w.kept_count for w in windows) > budget:
                widest = max(windows, key=lambda w: w.kept_count)
                widest.overflow, widest.kept, widest.kept_count = True, [], 0

    def _settle(self, rank: int, bounds: tuple[float, float], windows: list[_Window]) -> tuple[float, float]:
        """Look the order statistic up, or give narrower or other bounds for the next pass."""
        window = next(w for w in windows if w.low <= bounds[0] and bounds[1] <= w.high)
        place = rank - window.above  # 1 is the highest in the window
        inside = int(window.histogram.sum())
        if place < 1:  # it lies above: go up by what the window was wide, then by more
            step = 4 * (window.high - window.low)
            return self._within(rank, window.high, window.high + step)
        if place > inside:
            step = 4 * (window.high - window.low)
            return self._within(rank, window.low - step, window.low)
        if not window.overflow:
            value = float(window.kept[0][place - 1])
            self.found[rank] = value
            self.above_found[value] = window.above + int((window.kept[0] > value).sum())
            self.open.remove(rank)
            return bounds
        # Too many in the window: the histogram says which sliver of it holds the one that is sought.
        from_top = window.histogram.flip(0).cumsum(0)
        sliver = _WINDOW_BINS - 1 - int((from_top < place).sum())
        width = (window.high - window.low) / _WINDOW_BINS
        if width < 1e-15:
            raise ValueError(
                f"more than max_kept={self.max_kept} pairs score {window.high:.12f}; raise max_kept, or look for "
                "repeated or constant embeddings"
            )
        return window.low + (sliver - 0.5) * width, window.low + (sliver + 1.5) * width

    def _genuine_shares(self) -> Iterator[Tensor]:
        for _, scores in genuine_scores(self.rows, self.identity, self.peers):
            yield scores


def _merge(bounds: list[tuple[float, float]], gap: float) -> list[_Window]:
    """Windows over all bounds, from low to high, joined where they come closer than the tolerance around them."""
    windows: list[_Window] = []
    for low, high in sorted(bounds):
        if windows and low - gap <= windows[-1].high:
            windows[-1].high = max(windows[-1].high, high)
        else:
            windows.append(_Window(low, high))
    return windows


def _bins(values: Tensor, window: _Window) -> Tensor:
    place = ((values - window.low) / (window.high - window.low) * _WINDOW_BINS).long()
    return place.clamp_(0, _WINDOW_BINS - 1)


def _below(value: float) -> float:
    """A float32 number at or below ``value``, so that no rounding of the bound itself cuts a pair off."""
    return float(torch.nextafter(torch.tensor(value, dtype=torch.float32), torch.tensor(-4.0)))


def _above(value: float) -> float:
    return float(torch.nextafter(torch.tensor(value, dtype=torch.float32), torch.tensor(4.0)))
