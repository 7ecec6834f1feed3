"""One point of the benchmark, and the batches that every contestant is given."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        classes: C, over all ranks.
        rate: share of the classes that takes part in a step.
        batch: B, over all ranks.
        dim: D, width of the embeddings.
        ranks: processes that share the classes.
        threads: threads of each of them.
        seed: of centers, embeddings and labels.
    """

    classes: int = 100_000
    rate: float = 1.0
    batch: int = 256
    dim: int = 512
    ranks: int = 1
    threads: int = 2
    seed: int = 0

    @property
    def sampled(self) -> int:
        """K: classes that take part in a step."""
        return self.classes if self.rate >= 1 else max(round(self.rate * self.classes), 1)

    def local_batch(self, rank: int, step: int) -> tuple[Tensor, Tensor]:
        """This rank's embeddings (b, D) with gradient and labels (b,); new ones at every step."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        x = torch.randn(self.batch, self.dim, generator=generator)
        labels = torch.randint(0, self.classes, (self.batch,), generator=generator)
        own = slice(rank * self.batch // self.ranks, (rank + 1) * self.batch // self.ranks)
        return x[own].clone().requires_grad_(), labels[own].clone()

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        many = f", {self.ranks} ranks" if self.ranks > 1 else ""
        return (
            f"{self.classes:,} classes, rate {self.rate:g}, batch {self.batch}, dim {self.dim}{many}, "
            f"{self.threads} thread{'s' * (self.threads > 1)} a process"
        )
