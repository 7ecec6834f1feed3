"""Active classes by retrieval: the negatives are those whose centers are nearest to the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

import lightning_pfc.heads.sampling.ivf_index as ivf_index
from lightning_pfc.checked import checked
from lightning_pfc.heads.sampling.background_index import BackgroundCells, BackgroundFaiss, has_faiss
from lightning_pfc.heads.sampling.base import Drawn, Sampler
from lightning_pfc.heads.sampling.context import SamplingContext
from lightning_pfc.heads.sampling.sampled_classes import distinct

_PARTS = 10  # in how many portions classes get their cells anew between two moves of the pivots


@checked
@dataclass(frozen=True, kw_only=True)
class Retrieval(Sampler):
    """The classes whose centers are nearest to the batch's embeddings, up to the budget.

    The idea of HF-softmax (Zhang et al., "Accelerated training for massive classification via dynamic class selection",
    AAAI 2018): of all negatives, only those near an embedding have a probability worth computing, and an index that is
    some steps old finds them. Each rank searches its own centers and the best of all ranks are taken, so the set does
    not depend on how the classes are split (to rounding). A class's score is its cosine to the nearest row of the
    batch.
    Where the searched cells hold too few classes, the rest is drawn uniformly.

    A search costs O(B sqrt(C) D + B probes sqrt(C) D / W), an all-gather of K pairs, and waits for the device.

    Args:
        refresh: training forwards from one refresh of the index to the next.
        index: "cells" (own), "faiss" (``faiss.IndexIVFFlat``, one a rank), or "auto": cells, which are exact to
            resume; see ``background``.
        cells: how many cells; None: the square root of C.
        probes: cells that a row of the batch looks into.
        query: "embedding", or "target": look around the center of the row's own class, which does not jump with every
            image.
        background: False: a tenth of the classes is assigned anew every ``refresh / 10`` steps, within the step: a
            function of (seed, step, centers) alone, exact to resume on any number of ranks. True: a thread assigns all
            of them while training goes on, and the step after it is done uses it: nothing waits, and no two runs are
            the same.
        correction: not possible here.
    """

    refresh: int = 100
    index: Literal["auto", "cells", "faiss"] = "auto"
    cells: int | None = None
    probes: int = 4
    query: Literal["embedding", "target"] = "embedding"
    background: bool = False

    fill_with_uniform: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_count("refresh")
        self._check_count("probes")
        if self.cells is not None:
            self._check_count("cells")
        self._check_choice("index", ("auto", "cells", "faiss"))
        self._check_choice("query", ("embedding", "target"))
        if self.index == "faiss":
            if not has_faiss():
                raise ValueError(
                    f"{type(self).__name__}(index='faiss'): faiss is not installed; pip install faiss-cpu, or take "
                    "index='cells'."
                )
            if self.cells is not None:
                raise ValueError(f"{type(self).__name__}(index='faiss', cells={self.cells}): leave cells None.")

    def _hard_count(self, room: int) -> int:
        """How many of the negatives are retrieved."""
        return room

    def draw(self, context: SamplingContext) -> Drawn:
        """The nearest classes that are no targets."""
        targets = distinct(context.targets)
        count = self._hard_count(min(context.budget, context.num_classes) - targets.shape[0])
        if self.query == "target":
            queries = F.normalize(context.centers(targets).view(-1, context.dim), dim=1)
        else:
            queries = context.embeddings()
        among = torch.ones(context.shard.num_local, dtype=torch.bool, device=targets.device)
        among[context.shard.local_rows(targets)] = False
        rows, scores = self._search(context, queries.float(), among, count)
        if count <= 0:
            return Drawn(targets[:0])
        return Drawn(context.best(rows + context.shard.start, scores, count)[0])

    def _search(self, context: SamplingContext, queries: Tensor, among: Tensor, count: int) -> tuple[Tensor, Tensor]:
        if self.index == "faiss":
            found = context.cache.setdefault("faiss", BackgroundFaiss(self.probes))
            assert isinstance(found, BackgroundFaiss)
            found.refresh(context, self.refresh, wait=not self.background)
            return found.search(queries, among, count)
        if self.background:
            worker = context.cache.setdefault("cells", BackgroundCells())
            assert isinstance(worker, BackgroundCells)
            worker.refresh(context, self.refresh)
        else:
            ivf_index.refresh_(context, self.refresh, _PARTS)
        pivots = context.state["pivots"].float()
        return ivf_index.search(queries, context.weight, pivots, ivf_index.lists_of(context.cache), self.probes, among)

    def initial_state(self, num_classes: int, embedding_dim: int) -> dict[str, Tensor]:
        """The pivots of the cells."""
        return {} if self.index == "faiss" else ivf_index.new_state(num_classes, self.cells, embedding_dim)

    def row_state(self, embedding_dim: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """The cell of each class."""
        return {} if self.index == "faiss" else {"cell": ((), torch.int32)}


@checked
@dataclass(frozen=True, kw_only=True)
class Mixed(Retrieval):
    """A share of the negatives by retrieval, the others drawn uniformly from the remaining classes.

    Hard negatives carry the gradient, uniform ones represent all other classes. With ``correction`` the uniform ones
    stand for all classes that were not retrieved: the sum over the negatives is unbiased and has little noise, since
    its large terms are summed and not estimated.

    Args:
        share: of the negatives that are retrieved, in [0, 1].
        refresh, index, cells, probes, query, background: see :class:`Retrieval`.
        correction: see :class:`Sampler`.
    """

    share: float = 0.5

    has_inclusion_probs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("share", 0.0, 1.0)

    def _hard_count(self, room: int) -> int:
        return round(self.share * room)
