"""What a run is, in the few numbers that its memory, its traffic and its time depend on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from lightning_pfc.buffers.staged_rows import AHEAD_BYTES
from lightning_pfc.checked import checked
from lightning_pfc.distributed.shard import ClassShard
from lightning_pfc.heads.sampling.uniform_draw import capacity, class_budget
from lightning_pfc.kernels.tiles import LARGEST_WIDTH
from lightning_pfc.planning.words import BYTES, OPTIMIZERS, PRECISIONS


@checked
@dataclass(frozen=True, kw_only=True)
class Setup:
    """A head, its optimizer and the ranks that share it.

    Args:
        classes: C, over all ranks.
        dim: D, width of the embeddings.
        ranks: W.
        batch: rows per rank and step, as ``data.batch_size``.
        rate: ``head.sample_rate``.
        group_size: ranks that share one set of classes; None is all of them. With fewer, the classes are replicated.
        optimizer: ``sgd`` (SparseSGD with momentum), ``adamw`` (SparseAdamW), ``adagrad`` (RowWiseAdagrad), or
            ``torch-sgd`` (with momentum), ``torch-adamw``, which move every center in every step.
        dtype: of the centers, float32 or bfloat16.
        state_dtype: of the optimizer's state, float32, bfloat16 or int8; what adagrad keeps is one float32 a class.
        update_in_backward: centers are updated inside the backward pass, and their gradient is never held.
        embedding_dtype: in which embeddings travel: float32, or bfloat16 from a backbone in bf16-mixed.
        memory_budget: of the head, bytes of logits that are kept for the backward pass.
        precision: of the products, as ``head.precision``; ``auto`` is bfloat16 on a GPU with embeddings in it, else
            float32.
        rows_on: "device", or "host": centers, their gradient and the optimizer's state are in the host's memory.
        threads: that multiply, on a CPU: each has room of its own.
        device: "cpu" or "cuda"; on the latter sampled sets have a fixed size and buffers are larger.
        kernels: whether a GPU's small operations are Triton's kernels (compute capability 8.0 or more), which copy no
            rows; else room for the copies of plain torch is planned.

    Raises:
        ValueError: for a value out of range; the message names it and the way out.
    """

    classes: int
    dim: int = 512
    ranks: int = 1
    batch: int = 128
    rate: float = 1.0
    group_size: int | None = None
    optimizer: str = "sgd"
    dtype: str = "float32"
    state_dtype: str = "float32"
    update_in_backward: bool = False
    embedding_dtype: str = "float32"
    memory_budget: int = 512 << 20
    precision: str = "auto"
    device: str = "cuda"
    rows_on: str = "device"
    threads: int = 1
    kernels: bool = False

    def __post_init__(self) -> None:
        for name in ("classes", "dim", "ranks", "batch", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if not 0.0 <= self.rate <= 1.0:
            raise ValueError(f"rate={self.rate} must lie in [0, 1]; 1 uses every class in every step.")
        if self.group_size is not None and (self.group_size < 1 or self.ranks % self.group_size):
            divisors = [d for d in range(1, self.ranks + 1) if self.ranks % d == 0]
            raise ValueError(
                f"group_size={self.group_size} does not divide the {self.ranks} ranks; use one of {divisors}."
            )
        for name, choices in (
            ("optimizer", OPTIMIZERS),
            ("dtype", ("float32", "bfloat16")),
            ("state_dtype", tuple(BYTES)),
            ("embedding_dtype", ("float32", "bfloat16")),
            ("precision", PRECISIONS),
            ("device", ("cpu", "cuda")),
            ("rows_on", ("device", "host")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(choices)}.")
        if self.is_dense and self.update_in_backward:
            raise ValueError(
                f"update_in_backward=True is for sgd, adamw and adagrad; {self.optimizer} steps afterwards."
            )
        if self.is_dense and self.state_dtype != "float32":
            raise ValueError(f"state_dtype={self.state_dtype!r} is for sgd and adamw; {self.optimizer} keeps its own.")
        ClassShard(self.classes, 0, self.group)  # more ranks than classes

    def but(self, **changes: Any) -> Setup:
        """The same with other values."""
        return replace(self, **changes)

    @property
    def is_offloaded(self) -> bool:
        """Whether the centers are in another memory than the one that computes."""
        return self.rows_on == "host" and self.device != "cpu"

    @property
    def ahead_bytes(self) -> int:
        """Of the rows that are fetched from the host when a batch arrives."""
        subsamples = self.is_offloaded and self.sampled_rows < self.rows
        return self.sampled_rows * self.dim * BYTES[self.dtype] if subsamples else 0

    @property
    def goes_ahead(self) -> bool:
        """Whether they go to the device at once, and over the bus once."""
        return 0 < self.ahead_bytes <= AHEAD_BYTES

    @property
    def product(self) -> str:
        """The precision that products are computed in."""
        if self.precision != "auto":
            return self.precision
        return "bfloat16" if self.device != "cpu" and self.embedding_dtype == "bfloat16" else "float32"

    @property
    def has_kernels(self) -> bool:
        """Whether kernels read and step the centers where they lie."""
        on_device = self.kernels and self.device != "cpu" and not self.is_offloaded
        return on_device and self.dim <= LARGEST_WIDTH and self.product != "float16x3"

    @property
    def kept_bytes(self) -> int:
        """Of an exponential that is kept for the backward pass."""
        return 2 if self.product in ("bfloat16", "float16") else 4

    @property
    def is_dense(self) -> bool:
        """Whether the optimizer moves every center in every step."""
        return self.optimizer.startswith("torch-")

    @property
    def group(self) -> int:
        """G: ranks that share one set of classes."""
        return self.group_size or self.ranks

    @property
    def replicas(self) -> int:
        """W / G: copies of the head."""
        return self.ranks // self.group

    @property
    def group_batch(self) -> int:
        """Rows that every rank of a group works on: those of its group."""
        return self.batch * self.group

    @property
    def global_batch(self) -> int:
        """B."""
        return self.batch * self.ranks

    @property
    def rows(self) -> int:
        """c: classes of a rank, of the first, which has the most."""
        return ClassShard(self.classes, 0, self.group).num_local

    @property
    def budget(self) -> int:
        """Classes to draw over all ranks of a group."""
        return class_budget(self.rate, self.classes)

    @property
    def sampled_rows(self) -> int:
        """k: classes of a rank in a step; expected on a CPU, the fixed size elsewhere."""
        if self.budget >= self.classes:
            return self.rows
        shard = ClassShard(self.classes, 0, self.group)
        if self.device != "cpu":
            return capacity(self.global_batch, shard, self.budget)
        targets = self.classes * -_expm1_log1p(-1 / self.classes, self.global_batch)
        return max(1, round(max(self.budget, targets) * self.rows / self.classes))

    @property
    def state_tensors(self) -> int:
        """Numbers of state per number of a center: 0, 1 or 2."""
        return {"sgd": 1, "torch-sgd": 1, "adamw": 2, "torch-adamw": 2, "adagrad": 0}[self.optimizer]


def _expm1_log1p(x: float, times: int) -> float:
    """(1 + x)^times - 1, exactly enough for tiny x."""
    return math.expm1(times * math.log1p(x)) if x > -1 else -1.0
