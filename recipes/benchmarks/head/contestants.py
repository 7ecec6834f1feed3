# ruff: noqa: D102 (what a method does is said once, in the base class)
"""Who competes: one class each, made fresh in a process of its own, all starting from the same centers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from cases import Case
from torch import Tensor, nn

from lightning_pfc import PartialFC
from lightning_pfc.distributed import ClassShard
from lightning_pfc.heads.center_init import init_centers_
from lightning_pfc.losses import ArcFace, Loss, Softmax
from lightning_pfc.matmul.cpu import fast_fp32_matmul
from lightning_pfc.optim import RowWiseAdagrad, SparseSGD

SGD: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
STRAIGHT = ArcFace(margin_grad="straight_through")


class Contestant:
    """A head with its optimizer.

    Attributes:
        loss: what it computes, in our terms; None if it computes no loss.
        samples: whether it can train with a rate below 1.
        shards: whether it can share the classes with other ranks.
        needs_group: whether it wants a process group even when alone.
        steps_in_backward: whether the backward pass changes the centers.
        head: called as ``head(embeddings, labels)``; returns the loss.
        optimizer: stepped after backward.
    """

    loss: ClassVar[Loss | None] = None
    samples: ClassVar[bool] = False
    shards: ClassVar[bool] = False
    needs_group: ClassVar[bool] = False
    steps_in_backward: ClassVar[bool] = False
    head: nn.Module
    optimizer: torch.optim.Optimizer | None = None

    def __init__(self, case: Case, rank: int, peer: str | None) -> None:
        self.case, self.rank, self.peer = case, rank, peer
        self.build()

    def build(self) -> None:
        """Makes ``head`` and ``optimizer``."""
        raise NotImplementedError

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """The loss."""
        loss: Tensor = self.head(x, labels)
        return loss

    def backward(self, loss: Tensor) -> None:
        """Gradients of embeddings and centers."""
        loss.backward()

    def step(self) -> None:
        """One step of the optimizer, and the gradients away."""
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def centers(self, every: bool = False) -> Tensor:
        """The initial centers of this rank, (c, D), or of every rank, (C, D)."""
        case = self.case
        shard = ClassShard(case.classes) if every else ClassShard(case.classes, self.rank, case.ranks)
        return init_centers_(torch.empty(shard.num_local, case.dim), shard.start, case.seed, 0.01)


class Ours(Contestant):
    """PartialFC with SparseSGD, float32."""

    loss: ClassVar[Loss | None] = ArcFace()
    samples = shards = True
    dtype: ClassVar[torch.dtype] = torch.float32
    options: ClassVar[dict[str, Any]] = {}

    def build(self) -> None:
        self.head = self.make_head(self.loss)
        self.optimizer = self.make_optimizer()
        # A long run has touched the state of every row: commit it all, so that a short one shows its memory.
        self.optimizer.allocate_state()
        for state in self.optimizer.state.values():
            for value in state.values():
                value.fill_(0)

    def make_head(self, loss: Loss | None) -> PartialFC:
        case = self.case
        assert loss is not None
        head = PartialFC(
            embedding_dim=case.dim,
            num_classes=case.classes,
            loss=loss,
            sample_rate=case.rate,
            seed=case.seed,
            dtype=self.dtype,
            **self.options,
        )
        head.to("cpu")
        return head

    def make_optimizer(self) -> Any:
        return SparseSGD(self.head.parameters(), **SGD)


class OursInBackward(Ours):
    """PartialFC with SparseSGD inside the backward pass, float32: no gradient of the centers is held."""

    steps_in_backward = True

    def make_optimizer(self) -> Any:
        return SparseSGD(self.head.parameters(), **SGD, update_in_backward=True)


class OursLean(OursInBackward):
    """The same, and no logits are kept from forward to backward: they are computed again."""

    options: ClassVar[dict[str, Any]] = {"memory_budget": 0}


class OursHalfProducts(Ours):
    """PartialFC with SparseSGD, products in bfloat16."""

    options: ClassVar[dict[str, Any]] = {"precision": "bfloat16"}


class OursHalfLean(OursLean):
    """PartialFC with products in bfloat16, the centers updated in the backward pass, nothing kept."""

    options: ClassVar[dict[str, Any]] = {"precision": "bfloat16", "memory_budget": "lean"}


class OursAdagrad(Ours):
    """PartialFC with RowWiseAdagrad, float32: one number of state per class."""

    def make_optimizer(self) -> Any:
        return RowWiseAdagrad(self.head.parameters(), lr=0.01)


class OursBfloat16(OursAdagrad):
    """PartialFC with RowWiseAdagrad and centers in bfloat16."""

    dtype = torch.bfloat16


class OursSoftmax(Ours):
    """PartialFC with plain softmax and SparseSGD: what nn.Linear computes."""

    loss = Softmax()


class LinearCrossEntropy(Contestant):
    """nn.Linear and cross entropy, torch.optim.SGD."""

    loss = Softmax()

    def build(self) -> None:
        self.head = nn.Linear(self.case.dim, self.case.classes, bias=False, device="meta")
        self.head.weight = nn.Parameter(self.centers(every=True))
        self.optimizer = torch.optim.SGD(self.head.parameters(), **SGD)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.head(x), labels)


class ChunkedLinearCrossEntropy(LinearCrossEntropy):
    """PyTorch's linear_cross_entropy by chunks, torch.optim.SGD."""

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        options = nn.LinearCrossEntropyOptions()
        return nn.functional.linear_cross_entropy(x, self.head.weight, labels, options=options)  # type: ignore[arg-type]


class DataParallel(LinearCrossEntropy):
    """nn.Linear and cross entropy under DistributedDataParallel: every rank holds all centers (for counting bytes)."""

    shards = True

    def build(self) -> None:
        super().build()
        self.head = nn.parallel.DistributedDataParallel(self.head)


class MetricLearning(Contestant):
    """pytorch-metric-learning's ArcFaceLoss, torch.optim.SGD."""

    loss: ClassVar[Loss | None] = ArcFace()

    def build(self) -> None:
        from pytorch_metric_learning.losses import ArcFaceLoss

        self.head = ArcFaceLoss(self.case.classes, self.case.dim, margin=28.64788975654116, scale=64)
        self.head.W.data = self.centers().t().contiguous()
        self.optimizer = torch.optim.SGD(self.head.parameters(), **SGD)


class Dense(Contestant):
    """A dense sharded head of our own: softmax in place, dense gradient, torch.optim.SGD."""

    loss = STRAIGHT
    samples = shards = True

    def build(self) -> None:
        from dense_head import DenseShardedHead

        shard = ClassShard(self.case.classes, self.rank, self.case.ranks)
        self.head = DenseShardedHead(self.centers(), shard.start, self.case.rate)
        self.optimizer = torch.optim.SGD(self.head.parameters(), **SGD)


class Peer(Contestant):
    """The head of the file given by --peer, torch.optim.SGD."""

    loss = STRAIGHT
    samples = shards = needs_group = True

    def build(self) -> None:
        from peer_head import load_peer

        assert self.peer is not None
        self.head = load_peer(self.peer, self.case.dim, self.case.classes, self.case.rate)
        self.head.weight.data = self.centers()
        self.optimizer = torch.optim.SGD(self.head.parameters(), **SGD)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.head(x, labels.clone())  # such heads may write into the labels
        return loss


class Products(Contestant):
    """The three bare float32 matrix products of the same shapes, by torch.mm as it comes."""

    samples = shards = True

    def build(self) -> None:
        case = self.case
        rows = case.sampled // case.ranks
        self.weight = torch.randn(rows, case.dim)
        self.logits = torch.randn(case.batch, rows)
        self.weight_grad, self.x_grad = torch.empty(rows, case.dim), torch.empty(case.batch, case.dim)
        self.x = torch.randn(case.batch, case.dim)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        torch.mm(self.x, self.weight.t(), out=self.logits)
        return torch.zeros(())

    def backward(self, loss: Tensor) -> None:
        torch.mm(self.logits.t(), self.x, out=self.weight_grad)
        torch.mm(self.logits, self.weight, out=self.x_grad)


class FastProducts(Products):
    """The same three products through the library that our head takes on this machine (fast_fp32_matmul)."""

    @fast_fp32_matmul()
    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return super().forward(x, labels)

    @fast_fp32_matmul()
    def backward(self, loss: Tensor) -> None:
        super().backward(loss)


CONTESTANTS: dict[str, Callable[..., Contestant]] = {
    "products": Products,
    "products-fast": FastProducts,
    "ours": Ours,
    "ours-in-backward": OursInBackward,
    "ours-lean": OursLean,
    "ours-half": OursHalfProducts,
    "ours-half-lean": OursHalfLean,
    "ours-adagrad": OursAdagrad,
    "ours-bf16": OursBfloat16,
    "ours-softmax": OursSoftmax,
    "linear": LinearCrossEntropy,
    "linear-chunked": ChunkedLinearCrossEntropy,
    "data-parallel": DataParallel,
    "pml": MetricLearning,
    "dense": Dense,
    "peer": Peer,
}
