"""Indexes that a thread makes while training goes on."""

from __future__ import annotations

import importlib.util
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

import lightning_pfc.heads.sampling.ivf_index as ivf_index
from lightning_pfc.heads.sampling.context import SamplingContext


def has_faiss() -> bool:
    """Whether faiss is installed."""
    return importlib.util.find_spec("faiss") is not None


class _Background:
    """One thread, and at most one job at a time."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="class index")
        self._job: Future[Any] | None = None

    def __reduce__(self) -> Any:
        raise TypeError("an index in the making is never copied; the head leaves it out.")

    def start(self, work: Any, *args: Any) -> None:
        """Begin, unless the last job is still being done."""
        if self._job is None:
            self._job = self._pool.submit(work, *args)

    def result(self, wait: bool) -> Any:
        """What the job gave, once; None if there is none, or it is not done and nobody waits."""
        if self._job is None or not (wait or self._job.done()):
            return None
        job, self._job = self._job, None
        return job.result()


class BackgroundCells(_Background):
    """its inverted file, assigned by a thread from the centers as they are at that moment."""

    def refresh(self, context: SamplingContext, every: int) -> None:
        """Use what is done, and begin anew when it is time; all ranks move the pivots in the same step."""
        state, now = context.state, int(context.step)
        due = now % every == 0
        if int(state["built"]) == 0 or "lists" not in context.cache:
            ivf_index.refresh_(context, every, 1)
        elif (cell := self.result(wait=due)) is not None:
            state["cell"].copy_(cell)
            context.cache["lists"] = ivf_index.members(cell, state["pivots"].shape[0])
        if due and now:
            state["pivots"].copy_(ivf_index.moved_pivots(context, state["pivots"], state["cell"]))
            self.start(ivf_index.nearest, context.weight, state["pivots"].clone())


class BackgroundFaiss(_Background):
    """``faiss.IndexIVFFlat`` over this rank's centers, made anew from a copy of them; not a part of the checkpoint."""

    def __init__(self, probes: int) -> None:
        super().__init__()
        self._probes = probes
        self._index: Any = None

    def refresh(self, context: SamplingContext, every: int, wait: bool) -> None:
        """Use what is done, and begin anew when it is time; with ``wait`` it is done at once."""
        if self._index is None or int(context.step) % every == 0:
            self.start(self._build, ivf_index.direction(context.weight, context.dim).cpu().numpy())
        made = self.result(wait or self._index is None)
        if made is not None:
            self._index = made

    def _build(self, rows: Any) -> Any:
        import faiss

        count, dim = rows.shape
        number = max(1, min(round(count**0.5), count // 39))  # faiss wants 39 rows a cell to learn from
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, number, faiss.METRIC_INNER_PRODUCT)
        index.train(rows)
        index.add(rows)
        index.nprobe = self._probes
        return index

    def search(self, queries: Tensor, among: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """As :func:`~lightning_pfc.heads.sampling.ivf_index.search`, with cosines to the centers that were indexed."""
        # each row of the batch brings its share four times over, for neighbours that it has in common with others
        wanted = min(among.shape[0], max(1, -(-4 * count // max(1, queries.shape[0]))))
        cosine, rows = self._index.search(queries.cpu().numpy(), wanted)
        ids, scores = torch.from_numpy(rows).flatten(), torch.from_numpy(cosine).flatten()
        best = torch.full((among.shape[0],), -torch.inf)
        found = ids >= 0
        best.scatter_reduce_(0, ids[found], scores[found], "amax")
        kept = ((best > -torch.inf) & among.cpu()).nonzero().squeeze(1)
        return kept.to(among.device), best[kept].to(queries)
